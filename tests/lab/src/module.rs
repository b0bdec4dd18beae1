//! Building the guest driver against the headers of the guests' kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{ensure, Context, Result};

use crate::cache::Cache;
use crate::checkout::{copy_tree, module_path, Checkout};
use crate::kernels::{Kernel, Kernels};
use crate::process;
use crate::root::Root;

/// What the driver is built from: its own folder, and the headers it shares with the host side.
const SOURCES: &[&str] = &["guest/driver", "src/abi"];

/// Builds `virtio_pvsched.ko` for every kernel with headers; gives the files.
pub fn build(cache: &Cache, checkout: &Checkout) -> Result<Vec<PathBuf>> {
    let driver = checkout.path.join(SOURCES[0]);
    ensure!(driver.exists(), "there is no {}", driver.display());
    let root = Root::new(cache);
    let kernels = Kernels::new(cache);
    let newest = SOURCES
        .iter()
        .map(|source| newest_change(&checkout.path.join(source)))
        .try_fold(SystemTime::UNIX_EPOCH, |newest, change| {
            Ok::<_, anyhow::Error>(newest.max(change?))
        })?;
    let mut modules = Vec::new();
    for kernel in Kernel::WITH_HEADERS {
        let release = kernels.release(kernel)?;
        let module = module_path(&checkout.lab(), &release);
        let built = fs::metadata(&module).and_then(|module| module.modified());
        if !built.is_ok_and(|built| built > newest) {
            eprintln!("lab: building the guest driver for {release}");
            build_for(&root, checkout, &release, &module)
                .with_context(|| format!("the guest driver for {release}"))?;
        }
        modules.push(module);
    }
    Ok(modules)
}

fn build_for(root: &Root, checkout: &Checkout, release: &str, module: &Path) -> Result<()> {
    let folder = module.parent().context("a module without a folder")?;
    fs::create_dir_all(folder)?;
    // A copy, since kbuild writes beside the sources, for one kernel at a time.
    let work = tempfile::Builder::new()
        .prefix("build.")
        .tempdir_in(folder)?;
    for source in SOURCES {
        let from = checkout.path.join(source);
        if from.exists() {
            copy_tree(&from, &work.path().join(source))?;
        }
    }
    let mut make = root.enter_with(work.path(), "make");
    make.args([
        "-C",
        &format!("/usr/src/linux-headers-{release}"),
        "M=/build/guest/driver",
    ]);
    // Where the headers bring no vmlinux, kbuild says so and leaves the module's BTF out.
    make.args([
        "modules",
        &format!("-j{}", std::thread::available_parallelism()?),
    ]);
    let log = folder.join("build.log");
    fs::write(&log, "")?;
    process::run_logged(&mut make, &log)?;
    fs::rename(work.path().join("guest/driver/virtio_pvsched.ko"), module)
        .context("the Kbuild made no virtio_pvsched.ko")
}

fn newest_change(path: &Path) -> Result<SystemTime> {
    if !path.exists() {
        return Ok(SystemTime::UNIX_EPOCH);
    }
    let mut newest = fs::metadata(path)?.modified()?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(newest_change(&entry?.path())?);
        }
    }
    Ok(newest)
}
