//! The benchmark's command line: what to measure, of whom, how often.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{ensure, Result};
use clap::Args;

use super::contender::{Contender, BASE, CHRT, ENGINE, FLOOR, KERNEL, OURS, UNMODIFIED};
use super::growth;
use super::measure::{Measure, MEASURES};
use super::peers::Peer;
use crate::kernels::Kernel;

/// About how long it takes to start a scheduler and to stop it.
const SWITCH_GUESS: Duration = Duration::from_secs(7);

/// About how long it takes until all guests are up.
const BOOT_GUESS: Duration = Duration::from_secs(45);

/// Who is compared where there is little time.
const QUICK: &[&str] = &[FLOOR, KERNEL, "scx_bpfland", OURS];

/// What a quick run has no time for, unless it is asked for by name.
const NOT_QUICK: &[&str] = &["audio-256"];

/// Whose crate the engine in user space is built on, too.
pub const RUSTLAND: &str = "scx_rustland";

/// What to measure; the same on the machine and inside the host VM.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Rounds; each measures everything once under every contender
    #[arg(long, default_value_t = 5, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Only measures with this in their name, such as wakeup or hackbench; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Who is compared, with commas between: floor, kernel, chrt, names of scx crates, unmodified,
    /// pvsched_rustland, scx_pvsched [default: all but pvsched_rustland; with --quick floor, kernel,
    /// scx_bpfland and scx_pvsched]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub contenders: Vec<String>,
    /// Compare scx_pvsched with this engine, too, and with --quick also scx_rustland
    #[arg(long, value_name = "ENGINE", value_parser = ["rustland"])]
    pub engine: Option<String>,
    /// Another build of scx_pvsched, by its path in the checkout: what a change is worth
    #[arg(long, value_name = "PROGRAM")]
    pub base: Option<PathBuf>,
    /// A third of the work and a single round: to see that all of it runs
    #[arg(long)]
    pub quick: bool,
    /// A third of the work, as with --quick, of all measures and contenders in all rounds: for
    /// where time goes by counted instructions, and a second takes several
    #[arg(long)]
    pub brief: bool,
    /// Go on with the finished rounds of an interrupted run of the same setup
    #[arg(long)]
    pub resume: bool,
    /// Which contender comes first in the first round
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: usize,
    /// Kernel of the guests: a series such as 6.12, or newest
    #[arg(long, default_value_t = Kernel::Newest, value_name = "SERIES")]
    pub guest_kernel: Kernel,
    /// More options for scx_pvsched, in one word
    #[arg(
        long,
        default_value = "",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub scheduler_args: String,
}

impl Options {
    /// The command line that says the same.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--rounds={}", self.rounds),
            format!("--seed={}", self.seed),
            format!("--guest-kernel={}", self.guest_kernel),
            format!("--scheduler-args={}", self.scheduler_args),
        ];
        let contenders = self.contenders.join(",");
        arguments.extend((!contenders.is_empty()).then(|| format!("--contenders={contenders}")));
        arguments.extend(self.only.iter().map(|name| format!("--only={name}")));
        let engine = self.engine.iter();
        arguments.extend(engine.map(|engine| format!("--engine={engine}")));
        let base = self.base.iter();
        arguments.extend(base.map(|program| format!("--base={}", program.display())));
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments.extend(self.brief.then(|| "--brief".to_owned()));
        arguments.extend(self.resume.then(|| "--resume".to_owned()));
        arguments
    }

    pub fn rounds(&self) -> u32 {
        if self.quick {
            1
        } else {
            self.rounds
        }
    }

    /// Whether measures do a third of their work.
    pub fn is_brief(&self) -> bool {
        self.brief || self.quick
    }

    fn wants(&self, name: &str) -> bool {
        if self.only.is_empty() {
            return !self.quick || !NOT_QUICK.contains(&name);
        }
        self.only.iter().any(|only| name.contains(only))
    }

    /// Whether it is to be measured how costs grow with the number of vCPUs.
    pub fn grows(&self) -> bool {
        self.wants(growth::NAME)
    }

    /// What is measured in each round.
    ///
    /// # Errors
    /// When nothing has such a name.
    pub fn measures(&self) -> Result<Vec<&'static Measure>> {
        let measures: Vec<_> = MEASURES.iter().filter(|m| self.wants(m.name)).collect();
        let names: Vec<_> = MEASURES.iter().map(|measure| measure.name).collect();
        ensure!(
            !measures.is_empty() || self.grows(),
            "no measure has one of {:?} in its name; there are {}, {}",
            self.only,
            names.join(", "),
            growth::NAME
        );
        Ok(measures)
    }

    /// Who is compared, in the order of reports.
    ///
    /// # Errors
    /// When one is not known.
    pub fn contenders(&self) -> Result<Vec<Contender>> {
        let arguments = self.scheduler_args.split_whitespace().map(str::to_owned);
        let arguments: Vec<_> = arguments.collect();
        let mut all = Contender::all(&arguments);
        let names: Vec<_> = all.iter().map(Contender::name).collect();
        for name in &self.contenders {
            ensure!(
                names.contains(&name.as_str()),
                "nobody is named {name:?}; there are {}",
                names.join(", ")
            );
        }
        all.retain(|contender| {
            let name = contender.name();
            let of_engine = self.engine.is_some() && [ENGINE, RUSTLAND].contains(&name);
            if !self.contenders.is_empty() {
                let wanted = self.contenders.iter().any(|wanted| wanted == name);
                wanted || of_engine && name == ENGINE
            } else if self.quick {
                of_engine || QUICK.contains(&name)
            } else {
                of_engine || name != ENGINE
            }
        });
        if let Some(program) = &self.base {
            let last = all.len().saturating_sub(1);
            all.insert(last, Contender::Base(program.clone(), arguments));
        }
        // Those of which nothing is measured need not even be built.
        let measures = self.measures()?;
        all.retain(|contender| measures.iter().any(|measure| measure.concerns(contender)));
        Ok(all)
    }

    /// The peers among them.
    ///
    /// # Errors
    /// As [`Options::contenders`].
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let peer = |contender| match contender {
            Contender::Peer(peer) => Some(peer),
            _ => None,
        };
        Ok(self.contenders()?.into_iter().filter_map(peer).collect())
    }

    /// Whether anything is measured that has VMs.
    ///
    /// # Errors
    /// When nothing is to be measured.
    pub fn has_guests(&self) -> Result<bool> {
        Ok(self.measures()?.iter().any(|measure| measure.has_guest()))
    }

    /// About how long all of it takes without the boot of the host VM.
    ///
    /// # Errors
    /// When nothing is to be measured.
    pub fn estimate(&self) -> Result<Duration> {
        let measures = self.measures()?;
        let mut round = Duration::ZERO;
        for contender in self.contenders()? {
            let concerned = measures.iter().filter(|m| m.concerns(&contender));
            let seconds: u32 = concerned.map(|measure| measure.seconds).sum();
            // A third of the work, and all that comes with it.
            let seconds = if self.is_brief() {
                seconds * 2 / 3
            } else {
                seconds
            };
            round += SWITCH_GUESS + Duration::from_secs(seconds.into());
        }
        let boots = if self.has_guests()? {
            BOOT_GUESS
        } else {
            Duration::ZERO
        };
        let growth = if self.grows() {
            growth::estimate(self.is_brief())
        } else {
            Duration::ZERO
        };
        Ok(boots + round * self.rounds() + growth)
    }
}

/// Whether a contender of this name is one to beat: neither a bound, nor of ours.
pub fn is_rival(name: &str) -> bool {
    ![FLOOR, CHRT, UNMODIFIED, BASE, ENGINE, OURS].contains(&name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse<A: Into<String> + Clone>(line: &[A]) -> Options {
        let line = line.iter().cloned().map(Into::into);
        let program = "bench".to_owned();
        Cli::try_parse_from([program].into_iter().chain(line))
            .unwrap()
            .options
    }

    fn names(options: &Options) -> Vec<&'static str> {
        let contenders = options.contenders().unwrap();
        contenders.iter().map(Contender::name).collect()
    }

    #[test]
    fn a_command_line_can_be_passed_on() {
        let line = [
            "--rounds=2",
            "--only=hackbench",
            "--only=mixed",
            "--contenders=kernel,scx_pvsched",
            "--quick",
            "--brief",
            "--resume",
            "--seed=3",
            "--engine=rustland",
            "--base=target/base/scx_pvsched",
            "--scheduler-args=--slice-us 2000",
        ];
        for line in [&line[..], &[]] {
            let options = parse(line);
            let again = parse(&options.arguments());
            assert_eq!(again.arguments(), options.arguments());
        }
    }

    #[test]
    fn measures_are_chosen_by_a_part_of_their_name() {
        let options = parse(&["--only=hackbench", "--only=mixed"]);
        let measures = options.measures().unwrap();
        let names: Vec<_> = measures.iter().map(|measure| measure.name).collect();
        assert_eq!(names, ["hackbench", "hackbench-cgroup", "mixed"]);
        assert!(!options.has_guests().unwrap() && !options.grows());
        assert!(parse(&["--only=nothing"]).measures().is_err());
        assert!(parse(&["--only=growth"]).grows());
    }

    #[test]
    fn who_is_of_no_concern_to_a_measure_is_not_started() {
        assert_eq!(
            names(&parse(&["--only=hackbench", "--quick"])),
            ["kernel", "scx_bpfland", "scx_pvsched"]
        );
        assert_eq!(
            names(&parse(&["--only=wakeup", "--contenders=chrt,floor"])),
            ["floor", "chrt"]
        );
        assert!(parse(&["--contenders=nobody"]).contenders().is_err());
    }

    #[test]
    fn all_are_compared_unless_it_is_to_be_quick() {
        assert_eq!(names(&parse::<&str>(&[])).len(), 11);
        assert_eq!(names(&parse(&["--quick"])), QUICK);
    }

    #[test]
    fn an_engine_in_user_space_is_compared_where_it_is_asked_for() {
        let with = |line: &[&'static str]| names(&parse(line));
        assert!(!with(&["--only=wakeup"]).contains(&ENGINE));
        assert!(with(&["--only=wakeup", "--engine=rustland"]).contains(&ENGINE));
        let quick = with(&["--quick", "--engine=rustland"]);
        assert!(quick.contains(&ENGINE) && quick.contains(&RUSTLAND));
        let named = with(&["--contenders=floor,scx_pvsched", "--engine=rustland"]);
        assert_eq!(named, [FLOOR, ENGINE, OURS]);
        assert_eq!(with(&["--contenders=pvsched_rustland"]), [ENGINE]);
    }

    #[test]
    fn another_build_comes_before_ours() {
        let options = parse(&["--only=pipe", "--contenders=kernel,scx_pvsched", "--base=x"]);
        assert_eq!(names(&options), ["kernel", "base", "scx_pvsched"]);
    }

    #[test]
    fn a_quick_run_is_done_in_ten_minutes() {
        let estimate = parse(&["--quick"]).estimate().unwrap();
        assert!(estimate <= Duration::from_secs(600), "{estimate:?}");
        assert!(parse::<&str>(&[]).estimate().unwrap() > 5 * estimate);
    }
}
