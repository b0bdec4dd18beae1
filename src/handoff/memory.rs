// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory as the scheduler's process sees it: files that it checks, and single pages that it
//! maps for as long as it takes the kernel to pin them.
//!
//! Nothing here, and nothing in this process, reads or writes through such a mapping: the VMM may
//! truncate the file at any time, and the access would raise SIGBUS.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag, SealFlag};
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use nix::sys::stat::fstat;
use nix::sys::statfs::{fstatfs, HUGETLBFS_MAGIC};

use super::wire::{Region, PAGE_SIZE};

/// A region with the file that backs it, found fit for sharing.
pub(crate) struct GuestRegion {
    pub region: Region,
    file: OwnedFd,
    /// The unit in which the file can be mapped, in bytes.
    granule: u64,
}

impl GuestRegion {
    /// Says in words what is wrong with the file, and gives it back.
    ///
    /// Only files that live in memory will do: memfds, and files of tmpfs and hugetlbfs. The kernel
    /// refuses long-term pins of writable pages of other file systems anyway, and files of a FUSE
    /// server could make this process wait for it. F_GET_SEALS tells them apart without waiting.
    pub fn new(region: Region, file: OwnedFd) -> Result<Self, (OwnedFd, String)> {
        match Self::check(region, file.as_fd()) {
            Ok(granule) => Ok(Self {
                region,
                file,
                granule,
            }),
            Err(problem) => Err((file, problem)),
        }
    }

    fn check(region: Region, file: BorrowedFd) -> Result<u64, String> {
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(|_| {
            "its file does not live in memory; use a memfd, hugetlbfs or /dev/shm, shared"
        })?;
        let seals = SealFlag::from_bits_retain(seals);
        let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|error| error.to_string())?;
        let access = OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE;
        let sealed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
        if access != OFlag::O_RDWR || seals.intersects(sealed) {
            return Err("its file is not open for reading and writing".into());
        }
        let stat = fstat(file).map_err(|error| error.to_string())?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err("its file is not a regular file".into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size < region.file_end() {
            return Err(format!(
                "its file has {size:#x} bytes, the region ends at {:#x}",
                region.file_end()
            ));
        }
        let statfs = fstatfs(file).map_err(|error| error.to_string())?;
        let huge = statfs.filesystem_type() == HUGETLBFS_MAGIC;
        let huge_page = u64::try_from(stat.st_blksize).ok();
        match huge_page.filter(|size| size.is_power_of_two() && *size >= PAGE_SIZE) {
            Some(size) if huge => Ok(size),
            _ => Ok(PAGE_SIZE),
        }
    }

    /// Maps the guest page at that address, if it lies in this region.
    pub fn map_page(&self, gpa: u64) -> Option<Result<MappedPage, Errno>> {
        let offset = self.region.file_offset(gpa)?;
        Some(MappedPage::map(self.file.as_fd(), offset, self.granule))
    }
}

/// One guest page in this process's address space: shared, readable and writable. Unmapped when
/// dropped; a pin that the kernel has taken by then stays.
pub struct MappedPage {
    base: NonNull<c_void>,
    length: NonZeroUsize,
    address: u64,
}

impl MappedPage {
    fn map(file: BorrowedFd, offset: u64, granule: u64) -> Result<Self, Errno> {
        let start = offset - offset % granule;
        let length = usize::try_from(granule)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let start = libc::off_t::try_from(start).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, start)? };
        let base_address = u64::try_from(base.as_ptr().addr()).map_err(|_| Errno::EOVERFLOW)?;
        Ok(Self {
            base,
            length,
            address: base_address + offset % granule,
        })
    }

    /// Where the page is mapped, for the kernel to pin. Nobody may dereference it.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it was ever made.
        let unmapped = unsafe { munmap(self.base, self.length.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
