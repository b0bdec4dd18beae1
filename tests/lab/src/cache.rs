//! Where the lab keeps what is costly to make, and who may change it when.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// The cache folder: `$PVSCHED_LAB_CACHE`, else `pvsched-lab` in the user's cache folder.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

/// Keeps the cache as it is (shared) or to oneself (exclusive) while it lives.
pub struct Lock(#[allow(dead_code, reason = "holding it is its use")] Flock<File>);

impl Cache {
    pub fn open() -> Result<Self> {
        let path = match (
            env::var_os("PVSCHED_LAB_CACHE"),
            env::var_os("XDG_CACHE_HOME"),
        ) {
            (Some(own), _) if !own.is_empty() => PathBuf::from(own),
            (_, Some(xdg)) if !xdg.is_empty() => Path::new(&xdg).join("pvsched-lab"),
            _ => env::home_dir()
                .context("no home folder; set PVSCHED_LAB_CACHE")?
                .join(".cache/pvsched-lab"),
        };
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // QEMU and chroot are given paths below it, from other working folders.
        Ok(Self(path.canonicalize()?))
    }

    /// A folder of the cache, whether it exists or not.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Folders of single runs.
    pub fn runs(&self) -> Result<PathBuf> {
        let runs = self.0.join("runs");
        fs::create_dir_all(&runs)?;
        Ok(runs)
    }

    /// Output of the programs that prepare the cache.
    pub fn log(&self) -> PathBuf {
        self.0.join("prepare.log")
    }

    /// The verdict on this machine's own virtualisation.
    pub fn verdict(&self) -> PathBuf {
        self.0.join("accel")
    }

    /// For running machines: the cache must not change under them.
    pub fn lock_shared(&self) -> Result<Lock> {
        self.lock(FlockArg::LockSharedNonblock, FlockArg::LockShared)
    }

    /// For changing the cache: waits until no machine runs from it.
    pub fn lock_exclusive(&self) -> Result<Lock> {
        self.lock(FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive)
    }

    fn lock(&self, now: FlockArg, later: FlockArg) -> Result<Lock> {
        let file = File::create(self.0.join("lock"))?;
        let file = match Flock::lock(file, now) {
            Ok(lock) => return Ok(Lock(lock)),
            Err((file, _)) => file,
        };
        eprintln!(
            "lab: waiting for other lab commands to finish with {}",
            self.0.display()
        );
        let lock = Flock::lock(file, later).map_err(|(_, errno)| errno)?;
        Ok(Lock(lock))
    }
}
