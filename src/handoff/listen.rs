// SPDX-License-Identifier: GPL-2.0-only
//! The socket that a server listens on: its file, and who may open that.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use log::warn;
use nix::errno::Errno;
use nix::sys::socket::{
    bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
};

use super::server::{Access, ServerError};

/// The listening socket, and the device and inode number of its file.
pub(super) fn open_socket(
    path: &Path,
    access: Access,
) -> Result<(OwnedFd, (u64, u64)), ServerError> {
    let failed = |what| {
        let path = path.to_owned();
        move |source: io::Error| ServerError::File { what, path, source }
    };
    if let Some(directory) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        if !directory.exists() {
            fs::create_dir_all(directory).map_err(failed("create the directory of"))?;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory, mode).map_err(failed("set the mode of"))?;
        }
    }
    let errno = |what| move |errno: Errno| failed(what)(errno.into());
    let address = UnixAddr::new(path).map_err(errno("name"))?;
    remove_stale(path, &address)?;

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let kind = SockType::SeqPacket;
    let listener = socket(AddressFamily::Unix, kind, flags, None).map_err(errno("create"))?;
    // The file is born with the mode of the socket, so nobody gets in before it is as wanted.
    let nobody = nix::sys::stat::Mode::empty();
    nix::sys::stat::fchmod(&listener, nobody).map_err(errno("set the mode of"))?;
    bind(listener.as_raw_fd(), &address).map_err(errno("bind"))?;
    let mode = match access {
        Access::Mode { mode, gid } => {
            give(path, gid).map_err(failed("set the group of"))?;
            mode & 0o666
        }
        Access::LikeKvm => like_kvm(path),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of"))?;
    let file = fs::symlink_metadata(path).map_err(failed("look at"))?;
    listen(&listener, Backlog::new(128).expect("128 is a backlog")).map_err(errno("listen on"))?;
    Ok((listener, (file.dev(), file.ino())))
}

/// Gives the file to a group, unless it has that one already: a service manager may have forbidden
/// chown(2), whatever it would change.
fn give(path: &Path, gid: Option<u32>) -> io::Result<()> {
    match gid {
        Some(gid) if fs::symlink_metadata(path)?.gid() != gid => {
            std::os::unix::fs::chown(path, None, Some(gid))
        }
        _ => Ok(()),
    }
}

/// Gives the file to the group of /dev/kvm, and returns the mode that goes with it. Where a service
/// manager keeps us from that, root's VMs are served at least.
fn like_kvm(path: &Path) -> u32 {
    let kvm = match fs::metadata("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            if Path::new("/sys/class/misc/kvm").exists() {
                warn!("only root can hand VMs over, as /dev/kvm is not to be seen here: {error}");
            }
            return 0o600;
        }
    };
    let mode = kvm.permissions().mode() & 0o666;
    match give(path, Some(kvm.gid())) {
        Ok(()) => mode,
        Err(error) => {
            let path = path.display();
            warn!("the group of /dev/kvm cannot hand VMs over: cannot give it {path}: {error}");
            mode & 0o606
        }
    }
}

/// Removes the socket that a dead server left. A live one answers a connection.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ServerError> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ServerError::NotASocket(path.into()))
        }
        Ok(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|source| ServerError::File {
            what: "remove the stale",
            path: path.into(),
            source,
        }),
        Err(Errno::ENOENT) => Ok(()),
        // Connected, or busy, or not to be told apart from a live one: leave it alone.
        _ => Err(ServerError::InUse(path.into())),
    }
}
