//! Debian's kernels, chosen by series and unpacked, never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{bail, Context, Error, Result};

use crate::cache::Cache;
use crate::root::Root;
use crate::{process, vmlinux};

/// A kernel series. The patch release is whatever the archive has: it drops the older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian stable's, without sched_ext: a guest kernel.
    V6_12,
    /// The long-term series with sched_ext.
    V6_18,
    /// The newest that the archive has, with headers.
    Newest,
}

impl Kernel {
    /// Every series the lab prepares. To add one, add a variant, its name and its prefix here.
    pub const ALL: [Self; 3] = [Self::V6_12, Self::V6_18, Self::Newest];

    /// The series a module can be built for: the others' headers are not in the archive.
    pub const WITH_HEADERS: [Self; 2] = [Self::V6_12, Self::Newest];

    pub fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::Newest => "newest",
        }
    }

    /// The version numbers that make the series.
    fn prefix(self) -> &'static [u32] {
        match self {
            Self::V6_12 => &[6, 12],
            Self::V6_18 => &[6, 18],
            Self::Newest => &[],
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == name)
            .with_context(|| format!("no kernel {name}; there are 6.12, 6.18 and newest"))
    }
}

/// The kernels of a cache, or those a host VM sees at [`crate::paths::KERNELS`].
pub struct Kernels(PathBuf);

impl Kernels {
    pub fn new(cache: &Cache) -> Self {
        Self(cache.folder("kernels"))
    }

    /// The kernels in the given folder.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The release that stands for a series, such as `6.18.15+deb13-amd64`.
    pub fn release(&self, kernel: Kernel) -> Result<String> {
        let release = fs::read_to_string(self.0.join(kernel.name())).with_context(|| {
            format!("kernel {kernel} is not prepared; run `scripts/lab prepare`")
        })?;
        Ok(release.trim_end().to_owned())
    }

    /// The folder of a release: `vmlinux`, `config`, `modules/RELEASE`.
    pub fn folder(&self, release: &str) -> PathBuf {
        self.0.join(release)
    }

    /// Whether every series has its kernel.
    pub fn complete(&self) -> bool {
        Kernel::ALL.into_iter().all(|kernel| {
            self.release(kernel)
                .is_ok_and(|release| self.folder(&release).join("vmlinux").exists())
        })
    }

    /// Fetches what is missing; with `refresh`, also what the archive has newer.
    pub fn prepare(&self, root: &Root, cache: &Cache, refresh: bool) -> Result<()> {
        if self.complete() && !refresh {
            return Ok(());
        }
        process::run_logged(root.enter("apt-get").arg("update"), &cache.log())?;
        let pattern = "^linux-(image|headers)-[0-9]";
        let names =
            process::text(
                root.enter("apt-cache")
                    .args(["search", "--names-only", pattern]),
            )?;
        let names: Vec<_> = names
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        for kernel in Kernel::ALL {
            let with_headers = Kernel::WITH_HEADERS.contains(&kernel);
            let release = newest(&names, kernel.prefix(), with_headers).with_context(|| {
                format!("the archive has no kernel for {kernel}; choose another in kernels.rs")
            })?;
            if !self.folder(&release).join("vmlinux").exists() {
                eprintln!("lab: fetching kernel {release}");
                self.fetch(root, cache, &release, with_headers)
                    .with_context(|| format!("kernel {release}"))?;
            }
            fs::write(self.0.join(kernel.name()), format!("{release}\n"))?;
        }
        Ok(())
    }

    fn fetch(&self, root: &Root, cache: &Cache, release: &str, with_headers: bool) -> Result<()> {
        fs::create_dir_all(&self.0)?;
        let work = tempfile::Builder::new()
            .prefix("fetch.")
            .tempdir_in(&self.0)?;
        let debs = work.path().join("debs");
        let tree = work.path().join("tree");
        fs::create_dir(&debs)?;
        download(root, cache, &debs, &image_packages(root, release)?)?;
        unpack(&debs, &tree, cache)?;

        let modules = tree.join("usr/lib/modules").join(release);
        let ready = work.path().join("ready");
        fs::create_dir_all(ready.join("modules"))?;
        // Debian 14's packages keep these beside the modules, the older ones in /boot.
        for name in ["vmlinuz", "config"] {
            let in_boot = tree.join(format!("boot/{name}-{release}"));
            let from = if in_boot.exists() {
                in_boot
            } else {
                modules.join(name)
            };
            fs::rename(&from, ready.join(name))
                .with_context(|| format!("the packages of {release} have no {name}"))?;
        }
        let image = vmlinux::extract(&fs::read(ready.join("vmlinuz"))?, root)?;
        fs::write(ready.join("vmlinux"), image)?;
        fs::rename(&modules, ready.join("modules").join(release))?;
        let mut depmod = root.enter_with(&ready, "sh");
        // depmod wants the tree under lib/modules.
        depmod.args(["-c", "mkdir -p /tmp/lib && ln -s /build/modules /tmp/lib/modules && exec depmod -b /tmp \"$1\"", "sh", release]);
        process::run_logged(&mut depmod, &cache.log())?;
        if with_headers {
            let debs = work.path().join("headers");
            fs::create_dir(&debs)?;
            download(root, cache, &debs, &header_packages(root, release)?)?;
            unpack(&debs, root.path(), cache)?;
        }
        let folder = self.folder(release);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&ready, folder)?;
        Ok(())
    }
}

/// The packages that make up the image: one, or several of the same version, by their age.
fn image_packages(root: &Root, release: &str) -> Result<Vec<String>> {
    let image = format!("linux-image-{release}");
    let depends = process::text(root.enter("apt-cache").args(["depends", &image]))?;
    let mut packages: Vec<_> = real_depends(&depends)
        .into_iter()
        .filter(|name| name.starts_with("linux-") && name.ends_with(release))
        .collect();
    packages.push(image);
    Ok(packages)
}

/// The headers, and what of them all flavours share.
fn header_packages(root: &Root, release: &str) -> Result<Vec<String>> {
    let headers = format!("linux-headers-{release}");
    let depends = process::text(root.enter("apt-cache").args(["depends", &headers]))?;
    let mut packages: Vec<_> = real_depends(&depends)
        .into_iter()
        .filter(|name| name.ends_with("-common") || name.starts_with("linux-kbuild-"))
        .collect();
    if packages.is_empty() {
        bail!("{headers} does not name its common headers");
    }
    packages.push(headers);
    Ok(packages)
}

/// The packages that `apt-cache depends` lists as existing ones.
fn real_depends(list: &str) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect()
}

fn download(root: &Root, cache: &Cache, folder: &Path, packages: &[String]) -> Result<()> {
    let mut apt = root.enter_with(folder, "sh");
    apt.args(["-c", "cd /build && exec apt-get download \"$@\"", "sh"])
        .args(packages);
    process::run_logged(&mut apt, &cache.log())
}

fn unpack(debs: &Path, into: &Path, cache: &Cache) -> Result<()> {
    for deb in fs::read_dir(debs)? {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(deb?.path()).arg(into);
        process::run_logged(&mut dpkg, &cache.log())?;
    }
    Ok(())
}

/// The newest release of a series among package names, of those that have headers if asked for.
fn newest(names: &[&str], prefix: &[u32], with_headers: bool) -> Option<String> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter_map(|release| Some((version(release)?, release)))
        .filter(|(version, _)| version.starts_with(prefix))
        .filter(|(_, release)| {
            !with_headers
                || names
                    .iter()
                    .any(|n| n.strip_prefix("linux-headers-") == Some(release))
        })
        .max()
        .map(|(_, release)| release.to_owned())
}

/// The numbers of a release of the plain amd64 flavour, such as `7.3.4+deb13-amd64`.
fn version(release: &str) -> Option<Vec<u32>> {
    let plain = release.strip_suffix("-amd64")?;
    if plain.contains('-') {
        return None;
    }
    let numbers = plain.split('+').next()?;
    numbers
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "linux-headers-6.12.94+deb13-amd64",
        "linux-headers-6.12.107+deb13-amd64",
        "linux-headers-7.2.12+deb13-amd64",
        "linux-headers-7.2.12+deb13-common",
        "linux-image-6.12.107+deb13-amd64",
        "linux-image-6.12.107+deb13-cloud-amd64",
        "linux-image-6.12.107+deb13-rt-amd64",
        "linux-image-6.12.94+deb13-amd64",
        "linux-image-6.18.15+deb13-amd64",
        "linux-image-6.18.15+deb13-amd64-unsigned",
        "linux-image-6.18.9+deb13-amd64",
        "linux-image-7.2.12+deb13-amd64",
        "linux-image-7.3-amd64",
    ];

    #[test]
    fn versions_are_compared_by_number() {
        let found = newest(NAMES, Kernel::V6_12.prefix(), true);
        assert_eq!(found.as_deref(), Some("6.12.107+deb13-amd64"));
        let found = newest(NAMES, Kernel::V6_18.prefix(), false);
        assert_eq!(found.as_deref(), Some("6.18.15+deb13-amd64"));
    }

    #[test]
    fn the_newest_is_the_newest_with_headers() {
        assert_eq!(
            newest(NAMES, &[], true).as_deref(),
            Some("7.2.12+deb13-amd64")
        );
        assert_eq!(newest(NAMES, &[], false).as_deref(), Some("7.3-amd64"));
    }

    #[test]
    fn a_series_without_headers_or_kernels_is_not_found() {
        assert_eq!(newest(NAMES, Kernel::V6_18.prefix(), true), None);
        assert_eq!(newest(NAMES, &[6, 1], false), None);
    }

    #[test]
    fn a_series_is_not_a_prefix_of_digits() {
        assert_eq!(
            newest(&["linux-image-6.180.1+deb13-amd64"], &[6, 18], false),
            None
        );
    }

    #[test]
    fn other_flavours_are_not_versions() {
        assert_eq!(version("6.12.107+deb13-rt-amd64"), None);
        assert_eq!(version("6.18.15+deb13-amd64-unsigned"), None);
        assert_eq!(version("7.3-amd64"), Some(vec![7, 3]));
    }
}
