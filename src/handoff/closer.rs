// SPDX-License-Identifier: GPL-2.0-only
//! Closing what peers have sent, without waiting for it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};

use log::warn;

/// How many descriptors may wait for the closing thread before new ones are turned away, from all
/// peers: far more than a thread that is only slow leaves behind, far fewer than a process may have.
const CLOSING_MAX: usize = 1024;

/// Closes descriptors whose kind nobody checked on a thread of its own: closing a file of a FUSE
/// server waits for that server, which may be the peer's.
#[derive(Default)]
pub(super) struct Closer {
    queue: Option<mpsc::Sender<OwnedFd>>,
    waiting: Arc<AtomicUsize>,
}

impl Closer {
    /// Whether to turn away new descriptors: as many wait as one may make us hold.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= CLOSING_MAX
    }

    pub(super) fn close(&mut self, fds: Vec<OwnedFd>) {
        for fd in fds {
            if self.waiting.fetch_add(1, Ordering::Relaxed) == CLOSING_MAX {
                warn!("{CLOSING_MAX} descriptors of refused requests are slow to close");
            }
            let unsent = match &self.queue {
                Some(queue) => queue.send(fd).err().map(|error| error.0),
                None => Some(fd),
            };
            // The first one starts the thread; most servers never need it.
            if let Some(fd) = unsent {
                let (queue, fds) = mpsc::channel::<OwnedFd>();
                let waiting = Arc::clone(&self.waiting);
                let thread = std::thread::Builder::new().name("handoff-closer".into());
                let started = thread.spawn(move || {
                    for fd in fds {
                        drop(fd);
                        waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                });
                match started {
                    Ok(_) => {
                        let _ = queue.send(fd);
                        self.queue = Some(queue);
                    }
                    Err(_) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}
