//! Initial root file systems, written uncompressed: emulated CPUs unpack slowly, QEMU loads fast.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cpio::newc::{trailer, Builder};

use crate::kernels::Kernels;
use crate::process;
use crate::root::Root;

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

/// The contents of an initrd, by path without the leading slash.
#[derive(Clone, Default)]
pub struct Initrd {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Initrd {
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.entries
            .insert(path.to_owned(), (DIRECTORY, Vec::new()));
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries
            .insert(path.to_owned(), (SYMLINK, target.as_bytes().to_vec()));
    }

    pub fn data(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.parents(path);
        self.entries.insert(path.to_owned(), (REGULAR | mode, data));
    }

    pub fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let data = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.data(path, mode, data);
        Ok(())
    }

    /// A program with the loader and libraries of the root that it needs.
    pub fn program(&mut self, path: &str, from: &Path, root: &Root) -> Result<()> {
        self.file(path, from)?;
        self.file(
            "lib64/ld-linux-x86-64.so.2",
            &root.path().join("lib64/ld-linux-x86-64.so.2"),
        )?;
        for (name, file) in root.needed(from)? {
            self.file(&format!("lib/{name}"), &file)?;
        }
        Ok(())
    }

    /// The statically linked busybox of the root, under its own name and `sh`.
    pub fn busybox(&mut self, root: &Root) -> Result<()> {
        self.file("bin/busybox", &root.path().join("usr/bin/busybox"))?;
        self.symlink("bin/sh", "busybox");
        Ok(())
    }

    /// Modules with what they depend on, and `modules/order`: their names as to be loaded.
    pub fn modules(&mut self, kernels: &Kernels, release: &str, names: &[&str]) -> Result<()> {
        let folder = kernels.folder(release).join("modules").join(release);
        let dep = fs::read_to_string(folder.join("modules.dep"))
            .with_context(|| format!("kernel {release} is not whole; remove it, prepare anew"))?;
        let mut order = String::new();
        for path in load_order(&dep, names) {
            let name = module_name(&path);
            let from = folder.join(&path);
            let data = if path.ends_with(".xz") {
                process::output(Command::new("xz").arg("-dc").arg(&from))?
            } else {
                fs::read(&from)?
            };
            self.data(&format!("modules/{name}.ko"), 0o644, data);
            order += &format!("{name}\n");
        }
        self.data("modules/order", 0o644, order.into_bytes());
        Ok(())
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.entries
                .entry(path[..at].to_owned())
                .or_insert((DIRECTORY, Vec::new()));
        }
    }

    pub fn write(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = BufWriter::new(file);
        for (name, (mode, data)) in &self.entries {
            let size = u32::try_from(data.len()).context("a file too large for an initrd")?;
            let mut entry = Builder::new(name).mode(*mode).nlink(1).write(out, size);
            entry.write_all(data)?;
            out = entry.finish()?;
        }
        trailer(out)?.flush()?;
        Ok(())
    }
}

/// The paths of modules and their dependencies, each after what it needs. Names that modules.dep
/// does not know are built into the kernel.
fn load_order(dep: &str, names: &[&str]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    for name in names {
        let line = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == name.replace('-', "_"));
        let Some((path, needs)) = line else { continue };
        // modules.dep lists the nearest first, and everything a module needs indirectly too.
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

/// A module's name as the kernel has it, from its path.
fn module_name(path: &str) -> String {
    let file = PathBuf::from(path);
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz\n\
        kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp/ccp.ko.xz \
        kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz\n\
        kernel/fs/overlayfs/overlay.ko.xz:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let order = load_order(DEP, &["overlay", "kvm", "kvm-amd", "virtio_console"]);
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["overlay", "irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn an_initrd_holds_folders_before_their_files() {
        let mut initrd = Initrd::default();
        initrd.data("a/b/c", 0o755, b"x".to_vec());
        initrd.symlink("a/l", "b/c");
        let file = tempfile::NamedTempFile::new().unwrap();
        initrd.write(file.path()).unwrap();
        let mut reader = cpio::newc::Reader::new(File::open(file.path()).unwrap()).unwrap();
        let mut names = Vec::new();
        while !reader.entry().is_trailer() {
            names.push(reader.entry().name().to_owned());
            reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
        }
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/l"]);
    }
}
