//! The frames that a lab machine's agent and its client exchange over a virtio-serial port.
//!
//! A frame is a one-byte kind, a 32-bit id, a 32-bit payload length (both little endian) and the
//! payload. The id names a command, so several commands can run at once on one port, and lengths
//! instead of markers let a command print anything.

use std::io::{self, Read, Write};

/// Nothing on this port is larger: output is sent as it is read, in pieces far below this.
const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 9;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Agent → client: the machine is up and takes commands.
    Hello,
    /// Agent → client: the machine still schedules its agent.
    Heartbeat,
    /// Client → agent: run this. `merge` sends both streams, in the order written, as `Stdout`.
    Exec { merge: bool, argv: Vec<String> },
    /// Client → agent: end the command and what it started in its process group.
    Kill,
    /// Agent → client: bytes the command wrote.
    Stdout(Vec<u8>),
    /// Agent → client: bytes the command wrote to its standard error.
    Stderr(Vec<u8>),
    /// Agent → client: the command ended, with a shell's idea of its status (128 + signal).
    Exit(i32),
    /// Agent → client: a sentence for whoever reads the end of the run, such as a retried boot.
    Note(String),
}

/// One message and the command it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub id: u32,
    pub message: Message,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("lab channel: {what}"))
}

impl Frame {
    pub fn new(id: u32, message: Message) -> Self {
        Self { id, message }
    }

    /// Writes the frame in one call, so that writers sharing a port only need a lock around this.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match &self.message {
            Message::Hello => (b'H', Vec::new()),
            Message::Heartbeat => (b'B', Vec::new()),
            Message::Exec { merge, argv } => {
                let mut payload = vec![u8::from(*merge)];
                payload.extend(argv.join("\0").into_bytes());
                (b'X', payload)
            }
            Message::Kill => (b'K', Vec::new()),
            Message::Stdout(bytes) => (b'O', bytes.clone()),
            Message::Stderr(bytes) => (b'E', bytes.clone()),
            Message::Exit(status) => (b'S', status.to_le_bytes().to_vec()),
            Message::Note(text) => (b'N', text.clone().into_bytes()),
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD)
            .ok_or_else(|| invalid("a message longer than 1 MiB"))?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads one frame; `UnexpectedEof` when the other side has gone.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let [kind, i0, i1, i2, i3, l0, l1, l2, l3] = header;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3]))
            .ok()
            .filter(|length| *length <= MAX_PAYLOAD)
            .ok_or_else(|| invalid("a length beyond 1 MiB; the port carries something else"))?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let message = match kind {
            b'H' => Message::Hello,
            b'B' => Message::Heartbeat,
            b'X' => exec(payload)?,
            b'K' => Message::Kill,
            b'O' => Message::Stdout(payload),
            b'E' => Message::Stderr(payload),
            b'S' => Message::Exit(i32::from_le_bytes(
                payload
                    .try_into()
                    .map_err(|_| invalid("an exit status that is not 4 bytes"))?,
            )),
            b'N' => Message::Note(text(payload)?),
            _ => return Err(invalid("an unknown kind of message")),
        };
        Ok(Self {
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            message,
        })
    }
}

fn text(payload: Vec<u8>) -> io::Result<String> {
    String::from_utf8(payload).map_err(|_| invalid("text that is not UTF-8"))
}

fn exec(mut payload: Vec<u8>) -> io::Result<Message> {
    if payload.len() < 2 {
        return Err(invalid("a command without words"));
    }
    let words = payload.split_off(1);
    let argv = text(words)?.split('\0').map(str::to_owned).collect();
    Ok(Message::Exec {
        merge: payload[0] != 0,
        argv,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(message: Message) {
        let frame = Frame::new(7, message);
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap(), frame);
    }

    #[test]
    fn every_message_survives_the_wire() {
        round(Message::Hello);
        round(Message::Heartbeat);
        round(Message::Kill);
        round(Message::Exit(-1));
        round(Message::Note("retried boot".into()));
        round(Message::Stdout(vec![0, 255, b'\n', 0]));
        round(Message::Stderr(Vec::new()));
        let argv = vec!["sh".into(), "-c".into(), String::new(), "echo ä\n".into()];
        round(Message::Exec { merge: true, argv });
    }

    #[test]
    fn frames_follow_one_another() {
        let mut bytes = Vec::new();
        Frame::new(1, Message::Stdout(b"one".to_vec()))
            .write(&mut bytes)
            .unwrap();
        Frame::new(2, Message::Exit(3)).write(&mut bytes).unwrap();
        let mut wire = bytes.as_slice();
        assert_eq!(
            Frame::read(&mut wire).unwrap().message,
            Message::Stdout(b"one".to_vec())
        );
        assert_eq!(
            Frame::read(&mut wire).unwrap(),
            Frame::new(2, Message::Exit(3))
        );
        assert_eq!(
            Frame::read(&mut wire).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_stray_byte_is_refused_and_not_taken_for_a_length() {
        let wire = b"Booting the kernel...\n";
        let error = Frame::read(&mut wire.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_sent() {
        let frame = Frame::new(1, Message::Stdout(vec![0; MAX_PAYLOAD + 1]));
        assert!(frame.write(&mut Vec::new()).is_err());
    }
}
