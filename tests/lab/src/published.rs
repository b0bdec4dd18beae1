//! Programs of other projects, built from their published crates. Needs neither root nor the rest of
//! the lab.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::checkout::{copy_tree, Checkout};
use crate::process;

/// Only packages for it are fetched; scx_pvsched has no other platform either.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// A crate with a program of the same name.
pub struct Published {
    pub name: &'static str,
    pub version: &'static str,
    /// In the checkout: a change to be made to its sources.
    pub patch: Option<&'static str>,
    /// Of its dependencies: those that its authors published it with, or ours, so that what we have
    /// in common is compiled once.
    pub versions: Versions,
}

/// Whose Cargo.lock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    Theirs,
    Ours,
}

/// The scx project's loader, which starts only schedulers whose names it was compiled with.
pub const LOADER: Published = Published {
    name: "scx_loader",
    // The patch is for this one.
    version: "1.1.3",
    patch: Some("scripts/scx_loader.patch"),
    versions: Versions::Theirs,
};

/// A scheduler that the loader knows, for the tests that switch from one to another.
pub const OTHER_SCHEDULER: Published = Published {
    name: "scx_bpfland",
    version: "1.1.4",
    patch: None,
    versions: Versions::Ours,
};

impl Published {
    /// Builds it in a cargo profile of the checkout's target folder, `dev` or `release`; gives the
    /// program.
    ///
    /// # Errors
    /// When the crate cannot be had, the patch does not fit it, or it does not compile; each says
    /// which.
    pub fn build(&self, checkout: &Checkout, profile: &str) -> Result<PathBuf> {
        let Self { name, version, .. } = self;
        let source = self.prepare(checkout)?;
        self.compile(checkout, &source, profile)
            .with_context(|| format!("{name} {version} does not build"))
    }

    /// The sources, patched, below the lab's folder. Those that are there stay as they are, so that
    /// they are not compiled again.
    fn prepare(&self, checkout: &Checkout) -> Result<PathBuf> {
        let Self { name, version, .. } = self;
        let read = |path: &str| {
            fs::read_to_string(checkout.path.join(path))
                .with_context(|| format!("cannot read {path}"))
        };
        let patch = self.patch.map(read).transpose()?.unwrap_or_default();
        let lock = match self.versions {
            Versions::Theirs => String::new(),
            Versions::Ours => read("Cargo.lock")?,
        };
        let folder = checkout.lab().join(name);
        let source = folder.join("source");
        // Written last, so that what an interrupted call left does not count.
        let stamp = folder.join("made");
        let contents = format!("{version}\n{}\n{patch}\n{lock}", self.workspace());
        if fs::read_to_string(&stamp).is_ok_and(|made| made == contents) {
            return Ok(source);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let published = self
            .fetch(&folder)
            .with_context(|| format!("cannot have the sources of {name} {version}"))?;
        copy_tree(&published, &source)?;
        if let Some(path) = self.patch {
            apply(&checkout.path.join(path), &source)
                .with_context(|| format!("{path} does not fit {name} {version}"))?;
        }
        let manifest = source.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)?;
        fs::write(&manifest, format!("{text}\n{}", self.workspace()))?;
        if self.versions == Versions::Ours {
            fs::write(source.join("Cargo.lock"), lock)?;
        }
        fs::write(&stamp, contents)?;
        Ok(source)
    }

    /// What its manifest needs more. In our target folder it would be taken for a forgotten member
    /// of our workspace; and only with the same profile can it share what has been compiled.
    fn workspace(&self) -> &'static str {
        match self.versions {
            Versions::Theirs => "[workspace]\n\n[profile.dev]\ndebug = false\n",
            Versions::Ours => {
                "[workspace]\n\n[profile.dev]\nopt-level = 1\ndebug = \"line-tables-only\"\n\n\
                 [profile.dev.package.\"*\"]\ndebug = false\n"
            }
        }
    }

    /// The sources, as cargo unpacks them for a package that depends on them.
    fn fetch(&self, folder: &Path) -> Result<PathBuf> {
        let package = folder.join("fetch");
        fs::create_dir_all(package.join("src"))?;
        fs::write(package.join("src/lib.rs"), "")?;
        let manifest = package.join("Cargo.toml");
        fs::write(
            &manifest,
            format!(
                "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n\
                 [dependencies]\n{} = \"={}\"\n\n[workspace]\n",
                self.name, self.version
            ),
        )?;
        let mut fetch = cargo();
        fetch
            .args(["fetch", "--quiet", "--target", PLATFORM, "--manifest-path"])
            .arg(&manifest);
        process::output(&mut fetch)?;
        self.source_below(&cargo_home()?)
    }

    /// The folder of this package in a cargo home, whichever registry it came from.
    fn source_below(&self, home: &Path) -> Result<PathBuf> {
        let sources = home.join("registry/src");
        let folder = format!("{}-{}", self.name, self.version);
        fs::read_dir(&sources)
            .with_context(|| sources.display().to_string())?
            .flatten()
            .map(|registry| registry.path().join(&folder))
            .find(|source| source.join("Cargo.toml").exists())
            .with_context(|| format!("{} has no {folder}", sources.display()))
    }

    fn compile(&self, checkout: &Checkout, source: &Path, profile: &str) -> Result<PathBuf> {
        let mut command = cargo();
        command
            .args(["build", "--quiet", "--profile", profile])
            .arg("--manifest-path")
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&checkout.target);
        if self.versions == Versions::Theirs {
            command.arg("--locked");
        }
        process::output(&mut command)?;
        let folder = if profile == "dev" { "debug" } else { profile };
        Ok(checkout.binaries(folder).join(self.name))
    }
}

fn apply(patch: &Path, source: &Path) -> Result<()> {
    let mut command = Command::new("patch");
    // The version is fixed, so a hunk that fits only nearly is a mistake.
    command
        .args(["--strip=1", "--batch", "--forward", "--fuzz=0"])
        .arg("--directory")
        .arg(source)
        .arg("--input")
        .arg(patch);
    let out = command
        .output()
        .context("cannot start patch; is it installed?")?;
    ensure!(
        out.status.success(),
        "patch failed ({}): {}",
        out.status,
        String::from_utf8_lossy(&out.stdout)
    );
    Ok(())
}

/// Where cargo keeps what it fetches.
fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) if !home.is_empty() => Ok(home.into()),
        _ => Ok(env::home_dir().context("no home folder")?.join(".cargo")),
    }
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_are_found_in_any_registry() {
        let home = tempfile::tempdir().unwrap();
        let of = |registry: &str, package: &str| {
            let folder = home
                .path()
                .join("registry/src")
                .join(registry)
                .join(package);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("Cargo.toml"), "").unwrap();
            folder
        };
        assert!(LOADER.source_below(home.path()).is_err());
        of("one", "scx_loader-0.1.0");
        assert!(LOADER.source_below(home.path()).is_err());
        let wanted = of("two", &format!("scx_loader-{}", LOADER.version));
        assert_eq!(LOADER.source_below(home.path()).unwrap(), wanted);
    }

    #[test]
    fn a_patch_that_does_not_fit_says_what_does_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "another line\n").unwrap();
        let patch = folder.path().join("p");
        fs::write(&patch, "--- a/a\n+++ b/a\n@@ -1 +1,2 @@\n line\n+more\n").unwrap();
        let error = apply(&patch, folder.path()).unwrap_err();
        assert!(error.to_string().contains("FAILED"), "{error}");

        fs::write(folder.path().join("a"), "line\n").unwrap();
        apply(&patch, folder.path()).unwrap();
        let patched = fs::read_to_string(folder.path().join("a")).unwrap();
        assert_eq!(patched, "line\nmore\n");
    }
}
