// SPDX-License-Identifier: GPL-2.0-only
//! Packets with file descriptors over a Unix SOCK_SEQPACKET socket.
//!
//! nix sends. Receiving is done here, because nix gives no access to the descriptors of a packet
//! that brought more than fit, and those would then stay open in this process.

use std::io::{self, IoSlice};
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

use super::wire::MAX_MESSAGE;
use crate::abi::PVSCHED_HANDOFF_MAX_REGIONS;

/// One more than any message may carry, so that one too many is noticed.
const FDS: u32 = PVSCHED_HANDOFF_MAX_REGIONS + 1;

pub(crate) struct Packet {
    /// Longer than [`MAX_MESSAGE`] if and only if the packet was.
    pub bytes: Vec<u8>,
    /// Closed when dropped.
    pub fds: Vec<OwnedFd>,
    /// More descriptors were sent than are in `fds`.
    pub fds_lost: bool,
}

/// Sends one packet whole. An `ErrorKind::WouldBlock` of a non-blocking socket means that the
/// peer does not read.
pub(crate) fn send(socket: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    loop {
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one packet; `None` when the peer has closed the connection. Descriptors are only taken
/// if `take`; otherwise the kernel drops them, and the packet says that they are lost.
pub(crate) fn receive(socket: BorrowedFd, take: bool) -> io::Result<Option<Packet>> {
    // One byte more than any message, so that a longer packet is seen as such.
    let mut bytes = vec![0u8; MAX_MESSAGE + 1];
    // As u64 for the alignment of a cmsghdr.
    let mut control = [0u64; control_words()];
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if take {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
    }

    let length = loop {
        // SAFETY: the header points to buffers of the lengths that it says, alive for the call.
        let length =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(length) {
            Ok(length) => break length,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let fds = take_fds(&header);
    bytes.truncate(length);
    let fds_lost = header.msg_flags & libc::MSG_CTRUNC != 0;
    // A packet of no bytes reads like the end of the connection, and ends it here, too.
    Ok((length != 0).then_some(Packet {
        bytes,
        fds,
        fds_lost,
    }))
}

const fn control_words() -> usize {
    assert!(size_of::<RawFd>() == 4, "CMSG_SPACE wants a u32");
    // SAFETY: CMSG_SPACE only computes.
    let bytes = unsafe { libc::CMSG_SPACE(FDS * 4) };
    (bytes as usize).div_ceil(size_of::<u64>())
}

/// The descriptors that the kernel has installed, also those of a truncated control message.
fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the header is one that recvmsg has filled in, its control buffer still alive.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole cmsghdr in the buffer.
        let head = unsafe { message.read_unaligned() };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(message) }.cast::<RawFd>();
            // SAFETY: CMSG_LEN only computes.
            let length = head.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..length / size_of::<RawFd>() {
                // SAFETY: the kernel wrote that many descriptors, all of them new and ours alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; message is the one before.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (a, b) = pair();
        let file = tempfile::tempfile().unwrap();
        send(a.as_fd(), b"hello", &[file.as_fd(), file.as_fd()]).unwrap();
        let packet = receive(b.as_fd(), true).unwrap().unwrap();
        assert_eq!(packet.bytes, b"hello");
        assert_eq!(packet.fds.len(), 2);
        assert!(!packet.fds_lost);
    }

    #[test]
    fn more_descriptors_than_any_message_carries_are_noticed_and_closed() {
        let (a, b) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"x", &[writer.as_fd(); FDS as usize + 20]).unwrap();
        let packet = receive(b.as_fd(), true).unwrap().unwrap();
        assert!(packet.fds_lost);
        assert!(packet.fds.len() >= FDS as usize);
        drop((packet, writer));
        // The pipe ends only when each copy of its writing side is closed.
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn descriptors_that_are_not_wanted_never_enter_the_process() {
        let (a, b) = pair();
        let file = tempfile::tempfile().unwrap();
        send(a.as_fd(), b"x", &[file.as_fd()]).unwrap();
        let packet = receive(b.as_fd(), false).unwrap().unwrap();
        assert!(packet.fds_lost && packet.fds.is_empty());
    }

    #[test]
    fn a_packet_that_is_too_long_is_noticed() {
        let (a, b) = pair();
        send(a.as_fd(), &[1; MAX_MESSAGE * 3], &[]).unwrap();
        let packet = receive(b.as_fd(), true).unwrap().unwrap();
        assert!(packet.bytes.len() > MAX_MESSAGE);
    }

    #[test]
    fn a_closed_peer_is_the_end_and_a_silent_one_would_block() {
        let (a, b) = pair();
        let error = receive(b.as_fd(), true).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive(b.as_fd(), true).unwrap().is_none());
    }
}
