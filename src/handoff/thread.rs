// SPDX-License-Identifier: GPL-2.0-only
//! Threads by pidfd: the one name of a thread that cannot come to mean another.

use std::fs;
use std::io;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::bytes::narrow;

/// Opens a pidfd of one thread, given by its id in the caller's pid namespace. Linux 6.9 or newer.
pub fn open(tid: u32) -> io::Result<OwnedFd> {
    let tid = libc::pid_t::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: pidfd_open takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::PIDFD_THREAD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(narrow(fd)) })
}

/// What the kernel says about the thread behind a pidfd. Ids as seen from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub tid: u32,
    pub tgid: u32,
    pub real_uid: u32,
    pub effective_uid: u32,
    /// Of the pidfd: the same for all pidfds of one thread, never used again for another.
    pub inode: u64,
}

/// Asks who the thread is, or says in words why there is none.
pub(crate) fn identify(pidfd: BorrowedFd) -> Result<Identity, String> {
    if !is_pidfd(pidfd) {
        return Err("it is not a pidfd".into());
    }
    let info = get_info(pidfd).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => "it has exited".into(),
        _ => format!("the kernel tells nothing about it ({error}); is it older than Linux 6.13?"),
    })?;
    if info.pid == 0 {
        return Err("it is not visible in the scheduler's pid namespace".into());
    }
    if has_exited(pidfd) {
        return Err("it has exited".into());
    }
    let stat = nix::sys::stat::fstat(pidfd).map_err(|error| error.to_string())?;
    Ok(Identity {
        tid: info.pid,
        tgid: info.tgid,
        real_uid: info.ruid,
        effective_uid: info.euid,
        inode: stat.st_ino,
    })
}

/// Whether the thread is dead. A pidfd that was opened without PIDFD_THREAD, which only names a
/// process by its first thread, says so once the whole process is dead.
pub(crate) fn has_exited(pidfd: BorrowedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// By the name that the kernel gives to pidfds, which no file can have. An ioctl would tell, too,
/// but an ioctl on a stranger's file may reach a FUSE server of theirs, and wait for it.
fn is_pidfd(fd: BorrowedFd) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|name| name.as_os_str() == "anon_inode:[pidfd]")
}

fn get_info(pidfd: BorrowedFd) -> io::Result<libc::pidfd_info> {
    // SAFETY: a structure of integers, for which all-zero is valid.
    let mut info: libc::pidfd_info = unsafe { MaybeUninit::zeroed().assume_init() };
    info.mask = (libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS).into();
    debug_assert!(size_of::<libc::pidfd_info>() >= 64, "PIDFD_INFO_SIZE_VER0");
    // SAFETY: the request number carries the structure's size, and the kernel writes no more.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), libc::PIDFD_GET_INFO, &mut info) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn tid() -> u32 {
        u32::try_from(nix::unistd::gettid().as_raw()).unwrap()
    }

    #[test]
    fn a_pidfd_names_its_thread_and_nothing_after_it() {
        let (says, hears) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            says.send(tid()).unwrap();
            let _ = left.recv();
        });
        let tid = hears.recv().unwrap();
        let pidfd = open(tid).unwrap();
        let identity = identify(pidfd.as_fd()).unwrap();
        assert_eq!((identity.tid, identity.tgid), (tid, std::process::id()));
        assert_eq!(identity.effective_uid, nix::unistd::geteuid().as_raw());
        let again = open(tid).unwrap();
        assert_eq!(identify(again.as_fd()).unwrap().inode, identity.inode);

        drop(leave);
        thread.join().unwrap();
        // join returns a moment before the kernel is done with the thread.
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 1000u16).unwrap(), 1);
        assert_eq!(identify(pidfd.as_fd()), Err("it has exited".into()));
    }

    #[test]
    fn other_files_are_no_pidfds() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(identify(file.as_fd()), Err("it is not a pidfd".into()));
    }
}
