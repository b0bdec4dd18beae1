// SPDX-License-Identifier: GPL-2.0-only
//! The event that ends the ring thread of `vhost-user-backend`.
//!
//! The library (0.24) takes the reading end from its owner by `into_raw_fd` and never closes it: a
//! device that serves one QEMU after another would run out of descriptors.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::event::{
    new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier,
};

/// Closes the reading end. To be dropped when the library's threads have ended.
#[derive(Debug)]
pub(super) struct ExitEvent {
    fd: RawFd,
    id: Option<String>,
}

impl ExitEvent {
    /// A new event: what to keep, and what the library gets.
    pub(super) fn new() -> io::Result<(Self, (EventConsumer, EventNotifier))> {
        let ends = new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK)?;
        let fd = ends.0.as_raw_fd();
        let id = event_id(fd);
        Ok((Self { fd, id }, ends))
    }
}

impl Drop for ExitEvent {
    fn drop(&mut self) {
        // A library that closed it itself leaves a number that may stand for another file by now.
        if self.id.is_some() && event_id(self.fd) == self.id {
            // SAFETY: it is still open, is our event, and the library gave up its ownership.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
        }
    }
}

/// The kernel's number for the event behind a descriptor; none if that is no event.
fn event_id(fd: RawFd) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let line = info.lines().find(|line| line.starts_with("eventfd-id:"))?;
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn an_event_that_was_forgotten_is_closed() {
        let (event, (consumer, notifier)) = ExitEvent::new().unwrap();
        let fd = consumer.into_raw_fd();
        let id = event_id(fd);
        assert!(id.is_some());
        drop(event);
        assert_ne!(event_id(fd), id);
        assert_eq!(event_id(notifier.as_raw_fd()), id, "the other end stays");
    }

    #[test]
    fn an_event_that_was_closed_is_left_alone() {
        let (event, (consumer, _notifier)) = ExitEvent::new().unwrap();
        let fd = consumer.as_raw_fd();
        drop(consumer);
        // Another event takes the number, or another test's file does.
        let (_other, (next, _)) = ExitEvent::new().unwrap();
        let id = event_id(next.as_raw_fd());
        drop(event);
        assert_eq!(event_id(next.as_raw_fd()), id, "fd {fd}");
    }
}
