//! The shared pages of a running guest, written from the outside, as a guest could that follows no
//! rule. Its memory is a file of its QEMU.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use nix::fcntl::{fallocate, FallocateFlags};
use scx_pvsched::abi;

const CHUNK: usize = 1 << 20;
const PAGE: usize = abi::PVSCHED_PAGE_SIZE as usize;

/// Every page that a guest's driver has set up.
pub struct GuestPages {
    memory: File,
    offsets: Vec<u64>,
}

impl GuestPages {
    /// Looks for the pages' header in the memory of this QEMU's guest.
    pub fn find(qemu: u32) -> Result<Self> {
        let memory = memory_of(qemu)?;
        let length = memory.metadata()?.len();
        let mut offsets = Vec::new();
        let mut chunk = vec![0; CHUNK];
        for start in (0..length).step_by(CHUNK) {
            memory.read_exact_at(&mut chunk, start)?;
            for (number, page) in chunk.chunks_exact(PAGE).enumerate() {
                if is_page(page) {
                    offsets.push(start + (number * PAGE) as u64);
                }
            }
        }
        ensure!(!offsets.is_empty(), "the guest has no shared page");
        Ok(Self { memory, offsets })
    }

    pub fn count(&self) -> usize {
        self.offsets.len()
    }

    /// Reads the word at a byte offset of one of the pages.
    pub fn read(&self, page: usize, word: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        let at = self.at(page, word)?;
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the word at a byte offset of each page.
    pub fn write(&self, word: usize, value: u64) -> Result<()> {
        for page in 0..self.offsets.len() {
            let at = self.at(page, word)?;
            self.memory.write_all_at(&value.to_le_bytes(), at)?;
        }
        Ok(())
    }

    /// Takes all memory from the guest, as its VMM could. QEMU has sealed its size.
    pub fn take_away(&self) -> Result<()> {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let length = i64::try_from(self.memory.metadata()?.len())?;
        Ok(fallocate(&self.memory, hole, 0, length)?)
    }

    fn at(&self, page: usize, word: usize) -> Result<u64> {
        let offset = self.offsets.get(page).context("there is no such page")?;
        Ok(offset + word as u64)
    }
}

/// A page has its header, and nothing behind its last word.
fn is_page(page: &[u8]) -> bool {
    page.starts_with(&abi::PVSCHED_PAGE_HEADER.to_le_bytes())
        && page[size_of::<abi::pvsched_page>()..]
            .iter()
            .all(|byte| *byte == 0)
}

fn memory_of(qemu: u32) -> Result<File> {
    for entry in fs::read_dir(format!("/proc/{qemu}/fd"))? {
        let path = entry?.path();
        let target = fs::read_link(&path).unwrap_or_default();
        if target
            .to_string_lossy()
            .starts_with("/memfd:memory-backend-memfd")
        {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .context("cannot open the guest's memory");
        }
    }
    anyhow::bail!("process {qemu} has no guest memory in a file")
}
