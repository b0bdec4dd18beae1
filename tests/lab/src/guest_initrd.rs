//! The guests' initrds, made on the machine, where processors are fast.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::checkout::Checkout;
use crate::initrd::Initrd;
use crate::kernels::Kernels;
use crate::root::Root;
use crate::{paths, process};

/// Programs of the root that guests have beside busybox.
const TOOLS: &[&str] = &["chrt", "cyclictest", "hackbench", "memcached", "nice"];

/// What `guest-net` loads.
const MODULES: &[&str] = &["virtio_net"];

/// Writes one initrd for each kernel into `folder`, with the project's guest programs that exist.
pub fn write_all(
    folder: &Path,
    root: &Root,
    kernels: &Kernels,
    checkout: &Checkout,
    binaries: &Path,
) -> Result<()> {
    let mut common = Initrd::default();
    common.busybox(root)?;
    for dir in ["proc", "sys", "dev", "etc", "run", "tmp", "root"] {
        common.directory(dir);
    }
    common.data(
        "init",
        0o755,
        include_bytes!("../vm/guest-init.sh").to_vec(),
    );
    common.data(
        "bin/guest-up",
        0o755,
        include_bytes!("../vm/guest-up.sh").to_vec(),
    );
    common.data(
        "bin/guest-net",
        0o755,
        include_bytes!("../vm/guest-net.sh").to_vec(),
    );
    // memcached looks for the user that it is told to run as.
    common.data(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\n".to_vec(),
    );
    for tool in TOOLS {
        let tool_path = root.path().join("usr/bin").join(tool);
        common.program(&format!("bin/{tool}"), &tool_path, root)?;
    }
    let own = [("pvsched-lab", folder.join("pvsched-lab"))];
    let built = [("pvsched-guest", binaries.join("pvsched-guest"))];
    for (name, path) in own
        .into_iter()
        .chain(built.into_iter().filter(|(_, path)| path.exists()))
    {
        let stripped = tempfile::NamedTempFile::new()?;
        strip(root, &path, stripped.path())?;
        common.program(&format!("bin/{name}"), stripped.path(), root)?;
    }
    for release in kernels.releases()? {
        let mut initrd = common.clone();
        initrd.modules(kernels, &release, MODULES)?;
        if let Some(module) = checkout.module(&release) {
            initrd.file("lib/virtio_pvsched.ko", &module)?;
        }
        initrd.write(&folder.join(paths::guest_initrd(&release)))?;
    }
    Ok(())
}

/// Guests have little memory, and symbols are most of a Rust program.
fn strip(root: &Root, from: &Path, to: &Path) -> Result<()> {
    let words = root.foreign("strip");
    process::output(
        Command::new(&words[0])
            .args(&words[1..])
            .arg("-o")
            .arg(to)
            .arg(from),
    )?;
    Ok(())
}
