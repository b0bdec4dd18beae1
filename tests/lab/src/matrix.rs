//! Tries scx_pvsched on one host kernel after another, and tells of each in a row of a table.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::checkout::Checkout;
use crate::host_vm::{console_tail, End, Options, Setup};
use crate::kernels::Kernel;
use crate::survey::Findings;

/// For one survey: two to ten times what it takes.
const LIMIT: Duration = Duration::from_secs(300);

/// How often a kernel is tried: emulation faults now and then.
const TRIES: u32 = 2;

/// The start of the line with the findings.
const MARK: &str = "findings: ";

/// One kernel's row.
struct Row {
    kernel: Kernel,
    release: String,
    findings: Findings,
    tries: u32,
}

/// A row for each host kernel that was tried.
pub struct Table(Vec<Row>);

impl Table {
    /// Tries each of `kernels`, which have been prepared; all else of the host VMs is as in `options`.
    ///
    /// # Errors
    /// When the lab itself fails. A kernel that does not boot is a row that says so.
    pub fn make(
        cache: &Cache,
        checkout: &Checkout,
        options: &Options,
        kernels: &[Kernel],
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for kernel in kernels {
            let options = Options {
                kernel: *kernel,
                ..options.clone()
            };
            let setup = Setup::new(cache, checkout, &options)?;
            let mut tries = 0;
            let findings = loop {
                tries += 1;
                let findings = survey(&setup)?;
                let Some(failure) = &findings.failure else {
                    break findings;
                };
                eprintln!("lab: kernel {kernel}, try {tries}: {failure}");
                if tries == TRIES {
                    break findings;
                }
            };
            let row = Row {
                kernel: *kernel,
                release: setup.release().to_owned(),
                findings,
                tries,
            };
            eprintln!("lab: {}", row.cells().join(", "));
            rows.push(row);
        }
        Ok(Self(rows))
    }

    /// Whether all was as it should be on every kernel.
    pub fn is_good(&self) -> bool {
        self.0.iter().all(|row| row.findings.failure.is_none())
    }
}

/// One try in a host VM of its own.
fn survey(setup: &Setup) -> Result<Findings> {
    let failed = |why: String| Findings {
        failure: Some(why),
        ..Findings::default()
    };
    let mut vm = match setup.boot() {
        Ok(vm) => vm,
        Err(error) => return Ok(failed(format!("{error:#}"))),
    };
    let mut output = Vec::new();
    let end = vm.run(&["pvsched-lab", "survey"], LIMIT, |bytes| {
        output.extend_from_slice(bytes);
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&output);
    match end {
        End::Exit(0) => parse(&text),
        end => Ok(failed(format!(
            "{end:?}\n{text}\n{}",
            console_tail(&setup.console())
        ))),
    }
}

/// How findings get from the host VM to the machine.
pub fn print(findings: &Findings) -> Result<()> {
    println!("{MARK}{}", serde_json::to_string(findings)?);
    Ok(())
}

fn parse(text: &str) -> Result<Findings> {
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    let line = line.with_context(|| format!("the survey gave no findings but: {text}"))?;
    serde_json::from_str(line).with_context(|| format!("these are no findings: {line}"))
}

const HEADINGS: [&str; 7] = [
    "series",
    "release",
    "loads",
    "least share",
    "guest",
    "verdict",
    "warnings",
];

impl Row {
    fn cells(&self) -> [String; 7] {
        let found = &self.findings;
        let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        let guest = match found.vcpus {
            0 => "-".to_owned(),
            vcpus if found.boosts == 0 => format!("{vcpus} vCPUs, not boosted"),
            vcpus => format!("{vcpus} vCPUs, boosted"),
        };
        let verdict = match (&found.failure, self.tries) {
            (None, 1) => "good".to_owned(),
            (None, tries) => format!("good (try {tries})"),
            (Some(_), _) => "FAILED".to_owned(),
        };
        [
            self.kernel.to_string(),
            self.release.clone(),
            or_none(found.loads_s.map(|seconds| format!("{seconds:.1} s"))),
            or_none(found.least_share.map(|share| format!("{share:.2}"))),
            guest,
            verdict,
            found.warnings.join("; "),
        ]
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.0.iter().map(Row::cells));
        let width = |column: usize| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..HEADINGS.len()).map(width).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths);
            let padded: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", padded.join("  ").trim_end())?;
        }
        for row in &self.0 {
            if let Some(failure) = &row.findings.failure {
                writeln!(f, "\n{}: {failure}", row.kernel)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(failure: Option<&str>) -> Row {
        Row {
            kernel: Kernel::V6_16,
            release: "6.16.12".to_owned(),
            findings: Findings {
                loads_s: Some(2.04),
                vcpus: 2,
                boosts: 7,
                warnings: vec!["no quotas".to_owned()],
                failure: failure.map(str::to_owned),
                ..Findings::default()
            },
            tries: 2,
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_kernel_and_ends_with_what_failed() {
        let table = Table(vec![row(None), row(Some("it did not load"))]);
        assert!(!table.is_good());
        let text = table.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("6.16    6.16.12  2.0 s  -"), "{text}");
        assert!(
            lines[1].ends_with("2 vCPUs, boosted  good (try 2)  no quotas"),
            "{text}"
        );
        assert!(lines[2].contains("FAILED"), "{text}");
        assert_eq!(lines[4], "6.16: it did not load");
    }

    #[test]
    fn findings_are_found_among_other_output() {
        let findings = row(Some("first\nsecond")).findings;
        let text = format!(
            "lab: retried\n{MARK}{}\n",
            serde_json::to_string(&findings).unwrap()
        );
        assert_eq!(parse(&text).unwrap(), findings);
        assert!(parse("nothing").is_err());
    }
}
