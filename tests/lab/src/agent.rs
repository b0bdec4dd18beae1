//! The agent: runs commands in a lab machine for the client at the other end of its port.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use crate::paths;
use crate::protocol::{Frame, Message};

/// How long output may still come from what a command left behind before its end is reported.
const DRAIN: Duration = Duration::from_millis(300);

type Running = Arc<Mutex<HashMap<u32, Pid>>>;

#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, id: u32, message: Message) -> io::Result<()> {
        Frame::new(id, message).write(&mut *lock(&self.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicked thread leaves a map or a file that is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the lab's port until the machine stops; `heartbeat` is the time between signs of life.
pub fn serve(heartbeat: Option<Duration>) -> Result<()> {
    let path = find_port(Path::new("/sys/class/virtio-ports"))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut commands = file.try_clone().context("cannot duplicate the port")?;
    let port = Port(Arc::new(Mutex::new(file)));
    let running = Running::default();
    port.send(0, Message::Hello)
        .context("nobody took the greeting")?;
    if let Some(period) = heartbeat {
        let port = port.clone();
        thread::spawn(move || loop {
            thread::sleep(period);
            if port.send(0, Message::Heartbeat).is_err() {
                return;
            }
        });
    }
    loop {
        let Frame { id, message } = Frame::read(&mut commands).context("the port was closed")?;
        match message {
            Message::Exec { merge, argv } => {
                let (port, running) = (port.clone(), running.clone());
                thread::spawn(move || {
                    let status = run(&port, &running, id, merge, &argv).unwrap_or_else(|error| {
                        let text = format!("lab: cannot run {}: {error}\n", argv[0]);
                        // The status that follows tells the same if this does not arrive.
                        let _ = port.send(id, Message::Stderr(text.into_bytes()));
                        127
                    });
                    report_notes(&port);
                    let _ = port.send(id, Message::Exit(status));
                });
            }
            Message::Kill => {
                if let Some(pid) = lock(&running).get(&id) {
                    // It may have ended in this moment; its Exit frame says so.
                    let _ = killpg(*pid, Signal::SIGKILL);
                }
            }
            _ => {}
        }
    }
}

fn find_port(class: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(class).context("this machine has no virtio-serial ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == paths::PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("no virtio-serial port is named {}", paths::PORT_NAME)
}

fn run(port: &Port, running: &Running, id: u32, merge: bool, argv: &[String]) -> io::Result<i32> {
    let (out, write_out) = io::pipe()?;
    let mut command = Command::new(&argv[0]);
    command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .process_group(0);
    let (done, drained) = channel();
    let mut readers = 1;
    if merge {
        command.stderr(write_out.try_clone()?);
    } else {
        let (err, write_err) = io::pipe()?;
        command.stderr(write_err);
        forward(err, port.clone(), id, Message::Stderr, done.clone());
        readers += 1;
    }
    command.stdout(write_out);
    let mut child = command.spawn()?;
    // The command still holds the pipes' writing ends; drop ours, so that they end with it.
    drop(command);
    forward(out, port.clone(), id, Message::Stdout, done);
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    lock(running).insert(id, Pid::from_raw(pid));
    let status = child.wait();
    lock(running).remove(&id);
    for _ in 0..readers {
        // Whatever it left in the background may keep the pipe open for ever.
        if drained.recv_timeout(DRAIN).is_err() {
            break;
        }
    }
    status.map(exit_code)
}

fn forward(
    mut from: impl Read + Send + 'static,
    port: Port,
    id: u32,
    wrap: fn(Vec<u8>) -> Message,
    done: Sender<()>,
) {
    thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if port.send(id, wrap(buffer[..length].to_vec())).is_err() {
                break;
            }
        }
        // Nobody listens any more once the end has been reported.
        let _ = done.send(());
    });
}

fn report_notes(port: &Port) {
    let Ok(notes) = fs::read_to_string(paths::NOTES) else {
        return;
    };
    // A command that ends later reports only what came after.
    let _ = fs::remove_file(paths::NOTES);
    for note in notes.lines() {
        let _ = port.send(0, Message::Note(note.to_owned()));
    }
}

/// The status a shell would give: the exit code, or 128 and the signal's number.
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(125)
}
