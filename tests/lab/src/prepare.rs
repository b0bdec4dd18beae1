//! Bringing the cache to the state that running machines needs.

use std::fs::{self, File};
use std::time::Instant;

use anyhow::Result;

use crate::cache::{Cache, Lock};
use crate::kernels::{Kernel, Kernels, Offer};
use crate::root::Root;

/// Makes whatever is missing of the root, [`Kernel::PREPARED`] and the `kernels` given; with `refresh`
/// also looks for newer ones. Returns the lock that keeps all of it: hold it while machines run.
pub fn prepare(cache: &Cache, kernels: &[Kernel], refresh: bool) -> Result<Lock> {
    let (root, wanted) = (Root::new(cache), [&Kernel::PREPARED[..], kernels].concat());
    let all = Kernels::new(cache);
    loop {
        let lock = cache.lock_shared()?;
        if root.complete() && all.complete(&root, &wanted) && !refresh {
            return Ok(lock);
        }
        drop(lock);
        let lock = cache.lock_exclusive()?;
        let start = Instant::now();
        File::create(cache.log())?;
        root.prepare(cache)?;
        all.prepare(&root, cache, &wanted, refresh)?;
        eprintln!("lab: prepared in {} s", start.elapsed().as_secs());
        if refresh {
            return Ok(lock);
        }
        // Others may wait to share it, so take it as they do and look again.
        drop(lock);
    }
}

/// What the archive has from `first` on.
pub fn offered(cache: &Cache, first: Kernel) -> Result<Offer> {
    let root = Root::new(cache);
    let _lock = cache.lock_exclusive()?;
    root.prepare(cache)?;
    Kernels::offered(&root, cache, first)
}

/// Removes folders of runs whose lab was killed; those of live runs are locked.
pub fn sweep(cache: &Cache) -> Result<()> {
    for run in fs::read_dir(cache.runs()?)? {
        let run = run?.path();
        let Ok(file) = File::open(run.join("lock")) else {
            continue;
        };
        if nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok() {
            fs::remove_dir_all(&run)?;
        }
    }
    Ok(())
}
