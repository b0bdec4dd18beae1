//! The Debian mirror, as this machine's own apt is set up to use it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The base address of a Debian archive this machine's apt reads, with its plain releases.
pub fn find() -> Result<String> {
    let targets = process::text(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
        "Origin: Debian",
        "Component: main",
    ]))?;
    pick(&targets).context(
        "apt has no index of a Debian release; run apt-get update and see /etc/apt/sources.list",
    )
}

/// The first archive with a plain release: suites such as bookworm-security live elsewhere.
fn pick(targets: &str) -> Option<String> {
    targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, release)| !release.contains(['-', '/']))
        .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
}

/// Makes the root's apt reach the archive the way the machine's does.
pub fn configure_root(root: &Path, mirror: &str, suite: &str) -> Result<()> {
    let etc = root.join("etc");
    fs::write(
        etc.join("apt/sources.list"),
        format!("deb {mirror} {suite} main\ndeb {mirror} {suite}-backports main\n"),
    )?;
    let settings = process::text(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let wanted = ["Acquire::http", "Acquire::Check-", "Acquire::Retries"];
    let settings: String = settings
        .lines()
        .filter(|line| wanted.iter().any(|prefix| line.starts_with(prefix)))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(etc.join("apt/apt.conf.d/90machine"), settings)?;
    for file in ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"] {
        let from = Path::new("/").join(file);
        if from.exists() {
            let to = root.join(file);
            fs::create_dir_all(to.parent().unwrap_or(root))?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_the_plain_release_is_taken() {
        let targets = "http://mirror.example/security/ bookworm-security\n\
                       http://mirror.example/main/ bookworm-updates\n\
                       http://mirror.example/main/ bookworm\n";
        assert_eq!(pick(targets).as_deref(), Some("http://mirror.example/main"));
    }

    #[test]
    fn without_an_index_there_is_no_archive() {
        assert_eq!(pick(""), None);
    }
}
