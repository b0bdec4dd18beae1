//! Debian's kernels, chosen by series and unpacked, never installed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{bail, Context, Error, Result};
use tempfile::TempDir;

use crate::cache::Cache;
use crate::root::Root;
use crate::{process, vmlinux};

/// A kernel, as a rule by its series: which patch releases there are changes, as the archive drops the
/// older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// The newest of a series, by its major and minor number.
    Series(u32, u32),
    /// A patch release of a series.
    Release(u32, u32, u32),
    /// The newest that the archive has, with headers.
    Newest,
}

impl Kernel {
    /// Debian stable's, without sched_ext: a guest kernel.
    pub const V6_12: Self = Self::Series(6, 12);

    /// The long-term series with sched_ext.
    pub const V6_18: Self = Self::Series(6, 18);

    /// The first of Debian's that can run the scheduler.
    pub const V6_16: Self = Self::Series(6, 16);

    /// What the lab always prepares; any other is fetched when it is first asked for.
    pub const PREPARED: [Self; 3] = [Self::V6_12, Self::V6_18, Self::Newest];

    /// What a module is built for: the others' headers are not in the archive.
    pub const WITH_HEADERS: [Self; 2] = [Self::V6_12, Self::Newest];

    /// The version numbers that make the series.
    fn prefix(self) -> Vec<u32> {
        match self {
            Self::Series(major, minor) => vec![major, minor],
            Self::Release(major, minor, patch) => vec![major, minor, patch],
            Self::Newest => Vec::new(),
        }
    }

    fn has_headers(self) -> bool {
        Self::WITH_HEADERS.contains(&self)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(major, minor) => f.pad(&format!("{major}.{minor}")),
            Self::Release(major, minor, patch) => f.pad(&format!("{major}.{minor}.{patch}")),
            Self::Newest => f.pad("newest"),
        }
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = |digits: &str| {
            // Numbers only in the form in which they are printed: the name is a file's name, too.
            let number = digits.parse::<u32>().ok()?;
            (number.to_string() == digits).then_some(number)
        };
        if name == "newest" {
            return Ok(Self::Newest);
        }
        let numbers: Option<Vec<_>> = name.split('.').map(number).collect();
        match numbers.as_deref() {
            Some([major, minor]) => Ok(Self::Series(*major, *minor)),
            Some([major, minor, patch]) => Ok(Self::Release(*major, *minor, *patch)),
            _ => bail!("{name} is no kernel series such as 6.18, nor newest"),
        }
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
        let release = fs::read_to_string(self.0.join(kernel.to_string())).with_context(|| {
            format!("kernel {kernel} is not prepared; run `scripts/lab prepare --kernel {kernel}`")
        })?;
        Ok(release.trim_end().to_owned())
    }

    /// The folder of a release: `vmlinux`, `config`, `modules/RELEASE`.
    pub fn folder(&self, release: &str) -> PathBuf {
        self.0.join(release)
    }

    fn has(&self, release: &str) -> bool {
        self.folder(release).join("vmlinux").exists()
    }

    /// The releases that are there for any series.
    pub fn releases(&self) -> Result<BTreeSet<String>> {
        let mut releases = BTreeSet::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            if let Some(Ok(kernel)) = name.to_str().map(str::parse) {
                releases.insert(self.release(kernel)?);
            }
        }
        releases.retain(|release| self.has(release));
        Ok(releases)
    }

    /// Whether each of these has its release, and its headers if it is one with headers.
    pub fn complete(&self, root: &Root, kernels: &[Kernel]) -> bool {
        kernels.iter().all(|kernel| {
            self.release(*kernel).is_ok_and(|release| {
                self.has(&release) && (!kernel.has_headers() || headers(root, &release).exists())
            })
        })
    }

    /// What the archive has from `first` on.
    pub fn offered(root: &Root, cache: &Cache, first: Kernel) -> Result<Offer> {
        let names = Names::in_archive(root, cache)?;
        Ok(offer(&names.get(), first))
    }

    /// Fetches what of these is missing; with `refresh`, also what the archive has newer.
    pub fn prepare(
        &self,
        root: &Root,
        cache: &Cache,
        kernels: &[Kernel],
        refresh: bool,
    ) -> Result<()> {
        let missing: Vec<_> = kernels
            .iter()
            .filter(|kernel| refresh || !self.complete(root, &[**kernel]))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names = Names::in_archive(root, cache)?;
        let names = names.get();
        for kernel in missing {
            let with_headers = kernel.has_headers();
            let release = newest(&names, &kernel.prefix(), with_headers).with_context(|| {
                let all = offer(&names, Kernel::Series(0, 0)).whole;
                let all: Vec<_> = all.iter().map(Kernel::to_string).collect();
                format!(
                    "the archive has no whole kernel {kernel}; it has {}",
                    all.join(", ")
                )
            })?;
            if !self.has(&release) {
                eprintln!("lab: fetching kernel {release}");
                self.fetch(root, cache, &release)
                    .with_context(|| format!("kernel {release}"))?;
            }
            if with_headers && !headers(root, &release).exists() {
                self.fetch_headers(root, cache, &release)
                    .with_context(|| format!("the headers of kernel {release}"))?;
            }
            fs::write(self.0.join(kernel.to_string()), format!("{release}\n"))?;
        }
        Ok(())
    }

    /// A folder beside the kernels, for what is being fetched.
    fn work(&self) -> Result<TempDir> {
        fs::create_dir_all(&self.0)?;
        Ok(tempfile::Builder::new()
            .prefix("fetch.")
            .tempdir_in(&self.0)?)
    }

    fn fetch(&self, root: &Root, cache: &Cache, release: &str) -> Result<()> {
        let work = self.work()?;
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
        let folder = self.folder(release);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&ready, folder)?;
        Ok(())
    }

    /// They go into the root, where modules are built.
    fn fetch_headers(&self, root: &Root, cache: &Cache, release: &str) -> Result<()> {
        let work = self.work()?;
        download(root, cache, work.path(), &header_packages(root, release)?)?;
        unpack(work.path(), root.path(), cache)
    }
}

/// Where a release's headers are once they have been unpacked.
fn headers(root: &Root, release: &str) -> PathBuf {
    root.path().join(format!("usr/src/linux-headers-{release}"))
}

/// The archive's packages of kernels and headers, by name.
struct Names(String);

impl Names {
    fn in_archive(root: &Root, cache: &Cache) -> Result<Self> {
        process::run_logged(root.enter("apt-get").arg("update"), &cache.log())?;
        let pattern = "^linux-(image|binary|modules|headers)-[0-9]";
        let mut search = root.enter("apt-cache");
        search.args(["search", "--names-only", pattern]);
        process::text(&mut search).map(Self)
    }

    fn get(&self) -> Vec<&str> {
        self.0
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect()
    }
}

/// The series of an archive, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Those with a release of which every part is there.
    pub whole: Vec<Kernel>,
    /// Those without: an archive that keeps old releases may have lost their modules.
    pub in_parts: Vec<Kernel>,
}

fn offer(names: &[&str], first: Kernel) -> Offer {
    let series: BTreeSet<_> = names
        .iter()
        .filter_map(|name| version(name.strip_prefix("linux-image-")?))
        .filter_map(|version| match version[..] {
            [major, minor, ..] => Some(Kernel::Series(major, minor)),
            _ => None,
        })
        .filter(|kernel| *kernel >= first)
        .collect();
    let (whole, in_parts) = series
        .into_iter()
        .partition(|kernel| newest(names, &kernel.prefix(), false).is_some());
    Offer { whole, in_parts }
}

/// Whether an image that is split into packages comes with all that a lab machine needs of it.
fn is_whole(names: &[&str], release: &str) -> bool {
    let has = |kind: &str| names.contains(&format!("linux-{kind}-{release}").as_str());
    !has("binary") || has("modules")
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
        .filter(|(version, release)| version.starts_with(prefix) && is_whole(names, release))
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
        let found = newest(NAMES, &Kernel::V6_12.prefix(), true);
        assert_eq!(found.as_deref(), Some("6.12.107+deb13-amd64"));
        let found = newest(NAMES, &Kernel::V6_18.prefix(), false);
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
        assert_eq!(newest(NAMES, &Kernel::V6_18.prefix(), true), None);
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
    fn every_series_is_found_once_and_in_order() {
        let all = offer(NAMES, Kernel::V6_16);
        let wanted = [Kernel::V6_18, Kernel::Series(7, 2), Kernel::Series(7, 3)];
        assert_eq!((&all.whole[..], &all.in_parts[..]), (&wanted[..], &[][..]));
        assert!(Kernel::Series(6, 9) < Kernel::V6_12 && Kernel::Series(7, 3) < Kernel::Newest);
    }

    #[test]
    fn a_release_that_has_lost_its_modules_is_none() {
        let mut names = vec![
            "linux-image-6.19.6+deb13-amd64",
            "linux-binary-6.19.6+deb13-amd64",
            "linux-image-6.19.4+deb13-amd64",
            "linux-binary-6.19.4+deb13-amd64",
        ];
        let series = vec![Kernel::Series(6, 19)];
        assert_eq!(offer(&names, Kernel::V6_16).in_parts, series);
        names.push("linux-modules-6.19.4+deb13-amd64");
        assert_eq!(offer(&names, Kernel::V6_16).whole, series);
        let found = newest(&names, &[6, 19], false);
        assert_eq!(found.as_deref(), Some("6.19.4+deb13-amd64"));
    }

    #[test]
    fn a_series_is_named_by_its_numbers() {
        for name in ["6.12", "7.10", "7.2.11", "newest"] {
            let kernel: Kernel = name.parse().unwrap();
            assert_eq!(kernel.to_string(), name);
        }
        for name in [
            "",
            "6",
            "6.",
            "6.18.15.1",
            "6.018",
            "+6.18",
            "6.18+deb13-amd64",
            "new",
        ] {
            assert!(name.parse::<Kernel>().is_err(), "{name}");
        }
    }

    #[test]
    fn releases_are_those_that_a_series_stands_for() {
        let folder = tempfile::tempdir().unwrap();
        let kernels = Kernels::at(folder.path());
        for (name, release) in [
            ("6.18", "6.18.15-a"),
            ("7.3", "7.3.4-a"),
            ("newest", "7.3.4-a"),
        ] {
            fs::write(folder.path().join(name), format!("{release}\n")).unwrap();
            fs::create_dir_all(kernels.folder(release)).unwrap();
        }
        // Interrupted: it has no kernel yet.
        fs::write(folder.path().join("7.1"), "7.1.1-a\n").unwrap();
        for release in ["6.18.15-a", "7.3.4-a"] {
            fs::write(kernels.folder(release).join("vmlinux"), "").unwrap();
        }
        let releases: Vec<_> = kernels.releases().unwrap().into_iter().collect();
        assert_eq!(releases, ["6.18.15-a", "7.3.4-a"]);
    }

    #[test]
    fn other_flavours_are_not_versions() {
        assert_eq!(version("6.12.107+deb13-rt-amd64"), None);
        assert_eq!(version("6.18.15+deb13-amd64-unsigned"), None);
        assert_eq!(version("7.3-amd64"), Some(vec![7, 3]));
    }
}
