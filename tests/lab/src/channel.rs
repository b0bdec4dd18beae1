//! The client's end of a lab machine's port: start commands, collect their output, know it lives.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::protocol::{Frame, Message};

#[derive(Default)]
struct State {
    up: bool,
    closed: bool,
    last_seen: Option<Instant>,
    commands: HashMap<u32, Sender<Message>>,
    next_id: u32,
    notes: Vec<String>,
}

/// A connection to one machine's agent. QEMU connects to the socket when it starts.
#[derive(Clone)]
pub struct Channel {
    stream: Arc<Mutex<UnixStream>>,
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// How a command ended and what it wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// A shell's idea of the status: the exit code, or 128 and a signal's number.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        if self.status != 0 {
            bail!("status {}: {}{}", self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Makes the socket that QEMU is to connect to; call before starting QEMU.
    pub fn listen(path: &Path) -> Result<UnixListener> {
        UnixListener::bind(path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// Takes QEMU's connection. QEMU connects before it runs anything, so this waits briefly;
    /// `alive` tells whether it is worth waiting on.
    pub fn accept(listener: &UnixListener, mut alive: impl FnMut() -> bool) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if !alive() {
                        bail!("QEMU ended before it connected");
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error).context("cannot accept QEMU's connection"),
            }
        };
        stream.set_nonblocking(false)?;
        let mut reader = stream.try_clone()?;
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let for_reader = shared.clone();
        thread::spawn(move || {
            let (state, changed) = &*for_reader;
            while let Ok(frame) = Frame::read(&mut reader) {
                dispatch(&mut lock(state), frame);
                changed.notify_all();
            }
            let mut state = lock(state);
            state.closed = true;
            // Ends every wait for a command of this machine.
            state.commands.clear();
            changed.notify_all();
        });
        Ok(Self {
            stream: Arc::new(Mutex::new(stream)),
            shared,
        })
    }

    /// Waits for the agent's greeting; false when the time is over or QEMU has gone.
    pub fn wait_up(&self, limit: Duration) -> bool {
        let (state, changed) = &*self.shared;
        let waiting = |state: &mut State| !state.up && !state.closed;
        let (state, _) = changed
            .wait_timeout_while(lock(state), limit, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        state.up
    }

    /// Time since the agent last said anything.
    pub fn silence(&self) -> Duration {
        lock(&self.shared.0)
            .last_seen
            .map(|seen| seen.elapsed())
            .unwrap_or_default()
    }

    /// Whether QEMU has closed the port.
    pub fn closed(&self) -> bool {
        lock(&self.shared.0).closed
    }

    /// The sentences the agent has sent for the end of the run, each once.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.0).notes)
    }

    /// Starts a command.
    pub fn start(&self, argv: &[&str], merge: bool) -> Result<Job> {
        let (sender, messages) = channel();
        let id = {
            let mut state = lock(&self.shared.0);
            if state.closed {
                bail!("the machine has stopped");
            }
            state.next_id += 1;
            let id = state.next_id;
            state.commands.insert(id, sender);
            id
        };
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        self.send(id, Message::Exec { merge, argv })?;
        Ok(Job {
            channel: self.clone(),
            id,
            messages,
        })
    }

    /// Runs a shell command to its end. An overrun of `limit` ends the command and is an error.
    pub fn exec(&self, command: &str, limit: Duration) -> Result<Output> {
        self.start(&["/bin/sh", "-c", command], false)?
            .wait(limit)
            .with_context(|| format!("`{command}`"))
    }

    fn send(&self, id: u32, message: Message) -> Result<()> {
        Frame::new(id, message)
            .write(&mut *lock(&self.stream))
            .context("the machine no longer takes commands")
    }
}

fn dispatch(state: &mut State, frame: Frame) {
    state.last_seen = Some(Instant::now());
    match frame.message {
        Message::Hello => state.up = true,
        Message::Heartbeat => {}
        Message::Note(text) => state.notes.push(text),
        message => {
            let last = matches!(message, Message::Exit(_));
            if let Some(command) = state.commands.get(&frame.id) {
                // Nobody waits for this command any more if it cannot be delivered.
                let _ = command.send(message);
            }
            if last {
                state.commands.remove(&frame.id);
            }
        }
    }
}

/// What came of waiting for a piece of a command's output.
pub enum Event {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(i32),
    /// Nothing within the time given.
    Silence,
    /// The machine has stopped.
    Gone,
}

/// A command that runs in a machine.
pub struct Job {
    channel: Channel,
    id: u32,
    messages: Receiver<Message>,
}

impl Job {
    /// The next piece of output or the end, waiting at most `limit`.
    pub fn next(&self, limit: Duration) -> Event {
        match self.messages.recv_timeout(limit) {
            Ok(Message::Stdout(bytes)) => Event::Stdout(bytes),
            Ok(Message::Stderr(bytes)) => Event::Stderr(bytes),
            Ok(Message::Exit(status)) => Event::Exit(status),
            Ok(_) | Err(RecvTimeoutError::Timeout) => Event::Silence,
            Err(RecvTimeoutError::Disconnected) => Event::Gone,
        }
    }

    /// Collects the output until the command ends.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Event::Stdout(bytes) => stdout.extend(bytes),
                Event::Stderr(bytes) => stderr.extend(bytes),
                Event::Exit(status) => {
                    let [stdout, stderr] =
                        [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                    return Ok(Output {
                        status,
                        stdout,
                        stderr,
                    });
                }
                Event::Gone => bail!("the machine stopped while the command ran"),
                Event::Silence if Instant::now() >= deadline => {
                    self.kill()?;
                    bail!(
                        "not done after {limit:?}; so far it wrote: {}{}",
                        String::from_utf8_lossy(&stdout),
                        String::from_utf8_lossy(&stderr)
                    );
                }
                Event::Silence => {}
            }
        }
    }

    /// Ends the command and what it started.
    pub fn kill(&self) -> Result<()> {
        self.channel.send(self.id, Message::Kill)
    }
}
