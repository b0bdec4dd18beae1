// SPDX-License-Identifier: GPL-2.0-only
//! From the text of a configuration file to a [`Config`], or to what is wrong with it and where.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use glob::Pattern;
use nix::unistd;
use serde::de::{self, Deserializer, Visitor};
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::super::options::{IRQ_BUDGET_US, TASK_BUDGET_US};
use super::allowed::{Allowed, Class, Groups, NICE, RT_PRIO};
use super::{known_protocols, Config, Rule};
use crate::handoff::ProtocolName;

/// What is wrong with a text, and the line where that is.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}, `{text}`: {what}")]
pub struct Wrong {
    /// Counts from 1.
    pub line: usize,
    /// The line itself, shortened.
    pub text: String,
    pub what: String,
}

impl Wrong {
    /// Longest line that is repeated, in characters.
    const TEXT: usize = 60;

    fn at(place: usize, what: impl Into<String>, text: &str) -> Self {
        let before = text.get(..place).unwrap_or(text);
        let line = before.matches('\n').count();
        let it = text.lines().nth(line).unwrap_or_default().trim();
        Self {
            line: line + 1,
            text: it.chars().take(Self::TEXT).collect(),
            // The parser has a line for what it met and one for what it expected.
            what: what.into().trim_end().replace('\n', "; "),
        }
    }
}

/// What is wrong, with its place in bytes.
type Problem = (Range<usize>, String);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Option<Section>,
    #[serde(default)]
    vm: Vec<Spanned<Section>>,
}

/// `[default]`, or one `[[vm]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    name: Option<Spanned<String>>,
    user: Option<Spanned<User>>,
    class: Option<Class>,
    rt_prio_max: Option<Spanned<i64>>,
    // Not an array: that would take the first two of more.
    nice: Option<Spanned<Vec<i64>>>,
    task_budget_us: Option<Spanned<i64>>,
    irq_budget_us: Option<Spanned<i64>>,
    groups: Option<Groups>,
    placement: Option<bool>,
    protocols: Option<Vec<Spanned<String>>>,
}

#[derive(Debug)]
enum User {
    Name(String),
    Number(i64),
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = User;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a user's name or number")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<User, E> {
                Ok(User::Name(name.into()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<User, E> {
                Ok(User::Number(number))
            }
        }

        from.deserialize_any(Either)
    }
}

/// The number of a user of this host.
pub(super) fn uid_of(name: &str) -> Option<u32> {
    let user = unistd::User::from_name(name).ok()??;
    Some(user.uid.as_raw())
}

/// Parses a configuration. `base` is what a VM may have where the text says nothing; `uid_of` knows
/// the users of this host.
///
/// # Errors
/// The first thing that is wrong.
pub fn config(
    text: &str,
    base: &Allowed,
    uid_of: impl Fn(&str) -> Option<u32>,
) -> Result<Config, Wrong> {
    let file: File = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or(0, |span| span.start);
        Wrong::at(place, error.message(), text)
    })?;
    build(file, base, uid_of).map_err(|(place, what)| Wrong::at(place.start, what, text))
}

fn build(
    file: File,
    base: &Allowed,
    uid_of: impl Fn(&str) -> Option<u32>,
) -> Result<Config, Problem> {
    let default = file.default.unwrap_or_default();
    let misplaced = |what| format!("{what} is for [[vm]] sections; [default] is for all VMs");
    if let Some(name) = &default.name {
        return Err((name.span(), misplaced("name")));
    }
    if let Some(user) = &default.user {
        return Err((user.span(), misplaced("user")));
    }
    let default = default.over(base)?;
    let mut rules = Vec::with_capacity(file.vm.len());
    for section in file.vm {
        let place = section.span();
        let section = section.into_inner();
        if section.name.is_none() && section.user.is_none() {
            let what = "a [[vm]] section needs a name, a user or both; what is for all VMs goes \
                        into [default]";
            return Err((place, what.into()));
        }
        rules.push(Rule {
            name: section.name.as_ref().map(pattern).transpose()?,
            uid: section
                .user
                .as_ref()
                .map(|user| number(user, &uid_of))
                .transpose()?,
            allowed: section.over(&default)?,
        });
    }
    Ok(Config { default, rules })
}

impl Section {
    /// What the section says, and `base` for the rest.
    fn over(&self, base: &Allowed) -> Result<Allowed, Problem> {
        let class = self.class.unwrap_or(base.class);
        if let Some(prio) = &self.rt_prio_max {
            if class != Class::Rt {
                let what = format!(
                    "rt_prio_max goes with class = \"rt\" only, and the class here is \"{class}\""
                );
                return Err((prio.span(), what));
            }
        }
        let rt_prio = i64::from(*RT_PRIO.start())..=i64::from(*RT_PRIO.end());
        Ok(Allowed {
            class,
            rt_prio_max: ranged("rt_prio_max", self.rt_prio_max.as_ref(), &rt_prio)?
                .and_then(|prio| prio.try_into().ok())
                .unwrap_or(base.rt_prio_max),
            nice: match &self.nice {
                Some(nice) => nice_range(nice)?,
                None => base.nice.clone(),
            },
            task_budget_us: budget(
                "task_budget_us",
                self.task_budget_us.as_ref(),
                &TASK_BUDGET_US,
            )?
            .unwrap_or(base.task_budget_us),
            irq_budget_us: budget("irq_budget_us", self.irq_budget_us.as_ref(), &IRQ_BUDGET_US)?
                .unwrap_or(base.irq_budget_us),
            groups: self.groups.unwrap_or(base.groups),
            placement: self.placement.unwrap_or(base.placement),
            protocols: match &self.protocols {
                Some(names) => names.iter().map(protocol).collect::<Result<_, _>>()?,
                None => base.protocols.clone(),
            },
        })
    }
}

fn ranged(
    key: &str,
    value: Option<&Spanned<i64>>,
    range: &RangeInclusive<i64>,
) -> Result<Option<i64>, Problem> {
    let Some(value) = value else {
        return Ok(None);
    };
    if !range.contains(value.get_ref()) {
        let (least, most) = (range.start(), range.end());
        let what = format!("{key} must be from {least} to {most}");
        return Err((value.span(), what));
    }
    Ok(Some(*value.get_ref()))
}

fn budget(
    key: &str,
    value: Option<&Spanned<i64>>,
    range: &RangeInclusive<u64>,
) -> Result<Option<u64>, Problem> {
    let limit = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
    let range = limit(*range.start())..=limit(*range.end());
    let value = ranged(key, value, &range)?;
    Ok(value.and_then(|us| us.try_into().ok()))
}

fn nice_range(nice: &Spanned<Vec<i64>>) -> Result<RangeInclusive<i8>, Problem> {
    let values: Vec<i8> = nice
        .get_ref()
        .iter()
        .filter_map(|value| i8::try_from(*value).ok())
        .filter(|value| NICE.contains(value))
        .collect();
    match (nice.get_ref().len(), values.as_slice()) {
        (2, &[lowest, highest]) if lowest <= highest => Ok(lowest..=highest),
        _ => {
            let (least, most) = (NICE.start(), NICE.end());
            let what = format!(
                "nice is two numbers from {least} to {most}, of which the first is not the larger"
            );
            Err((nice.span(), what))
        }
    }
}

fn protocol(name: &Spanned<String>) -> Result<ProtocolName, Problem> {
    let known = known_protocols();
    let found = known
        .iter()
        .find(|known| known.name.as_str() == name.get_ref());
    found.map(|found| found.name).ok_or_else(|| {
        let known: Vec<_> = known.iter().map(|known| known.name.as_str()).collect();
        let (name_text, known) = (name.get_ref(), known.join(", "));
        let what = format!("protocols has {name_text:?}, which is none of: {known}");
        (name.span(), what)
    })
}

fn pattern(name: &Spanned<String>) -> Result<Pattern, Problem> {
    if name.get_ref().is_empty() {
        return Err((
            name.span(),
            "name is empty, and no VM's is; * is any".into(),
        ));
    }
    Pattern::new(name.get_ref()).map_err(|error| {
        let what = format!("name is no pattern as shells have them: {}", error.msg);
        (name.span(), what)
    })
}

fn number(user: &Spanned<User>, uid_of: impl Fn(&str) -> Option<u32>) -> Result<u32, Problem> {
    let (uid, what) = match user.get_ref() {
        User::Name(name) => (uid_of(name), format!("this host has no user {name:?}")),
        // The largest number means "no user"; chown(2).
        User::Number(uid) => (
            u32::try_from(*uid).ok().filter(|uid| *uid != u32::MAX),
            format!("user {uid} is no number of a user"),
        ),
    };
    uid.ok_or_else(|| (user.span(), what))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::super::super::options::Options;
    use super::*;

    const EXAMPLE: &str = include_str!("../../../scripts/scx_pvsched.toml");

    fn base() -> Allowed {
        Allowed::by_options(&Options::parse_from(["scx_pvsched"]))
    }

    /// This host has one user.
    fn parse(text: &str) -> Result<Config, Wrong> {
        config(text, &base(), |name| {
            (name == "libvirt-qemu").then_some(64055)
        })
    }

    /// Its error must name that line and contain those words.
    #[track_caller]
    fn refuses(text: &str, line: usize, words: &[&str]) {
        let wrong = parse(text).expect_err(text);
        assert_eq!(wrong.line, line, "{wrong}");
        for word in words {
            assert!(wrong.to_string().contains(word), "{word:?} not in: {wrong}");
        }
        assert!(!wrong.to_string().contains('\n'), "{wrong}");
    }

    #[test]
    fn an_empty_file_leaves_all_to_the_command_line() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::same_for_all(base()));
        assert_eq!(config.protocols(), known_protocols());
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "[default]\nclass = 'rt'\nrt_prio_max = 50\nnice = [-5, 10]\ntask_budget_us = 1\n\
             irq_budget_us = 2\ngroups = 'shared'\nplacement = false\nprotocols = []\n",
        );
        let expected = Allowed {
            class: Class::Rt,
            rt_prio_max: 50,
            nice: -5..=10,
            task_budget_us: 1,
            irq_budget_us: 2,
            groups: Groups::Shared,
            placement: false,
            protocols: vec![],
        };
        assert_eq!(config.unwrap(), Config::same_for_all(expected));
    }

    #[test]
    fn the_first_rule_for_a_vm_wins_and_the_default_fills_in() {
        let config = parse(
            "[default]\ntask_budget_us = 1\nirq_budget_us = 1\n\
             [[vm]]\nname = 'audio*'\nuser = 'libvirt-qemu'\ntask_budget_us = 2\n\
             [[vm]]\nname = 'audio[12]'\ntask_budget_us = 3\n\
             [[vm]]\nuser = 1000\ntask_budget_us = 4\n",
        )
        .unwrap();
        let budgets = |name, uid| {
            let allowed = config.allowed(name, uid);
            (allowed.task_budget_us, allowed.irq_budget_us)
        };
        assert_eq!(budgets("audio1", 64055), (2, 1));
        assert_eq!(budgets("audio1", 0), (3, 1));
        assert_eq!(budgets("audio1/x", 64055), (2, 1));
        assert_eq!(budgets("audio3", 0), (1, 1));
        assert_eq!(budgets("audio3", 1000), (4, 1));
        assert_eq!(budgets("my audio1", 64055), (1, 1));
    }

    #[test]
    fn a_protocol_is_offered_if_any_rule_allows_it() {
        let one = "[default]\nprotocols = []\n[[vm]]\nname = 'x'\nprotocols = ['latency']\n";
        let one = parse(one).unwrap();
        assert_eq!(one.protocols().len(), 1);
        let latency = ProtocolName::LATENCY;
        assert!(one.allowed("x", 0).may_speak(&latency));
        assert!(!one.allowed("y", 0).may_speak(&latency));
        assert!(parse("[default]\nprotocols = []")
            .unwrap()
            .protocols()
            .is_empty());
    }

    #[test]
    fn an_error_names_its_line_and_its_key() {
        refuses("[default", 1, &["[default"]);
        refuses("[default]\n\nclas = 'rt'", 3, &["clas", "class"]);
        refuses("[defaults]", 1, &["defaults", "default"]);
        refuses("[vm]\nname = 'x'", 1, &["vm"]);
        refuses(
            "[default]\nclass = 'fifo'",
            2,
            &["class", "fifo", "deadline"],
        );
        refuses("[default]\nplacement = 1", 2, &["placement", "boolean"]);
        refuses("[default]\nclass = 5", 2, &["class = 5"]);
        refuses(
            "[default]\nclass = 'rt'\nrt_prio_max = 100",
            3,
            &["rt_prio_max", "1 to 99"],
        );
        refuses(
            "[default]\nclass = 'rt'\nrt_prio_max = 0",
            3,
            &["rt_prio_max", "1 to 99"],
        );
        refuses(
            "[default]\nrt_prio_max = 'x'",
            2,
            &["rt_prio_max", "string"],
        );
        refuses(
            "[default]\nrt_prio_max = 5",
            2,
            &["rt_prio_max", "deadline"],
        );
        refuses("[default]\nnice = [5, 4]", 2, &["nice", "-20 to 19"]);
        refuses("[default]\nnice = [-21, 4]", 2, &["nice", "-20 to 19"]);
        refuses("[default]\nnice = [0, 20]", 2, &["nice", "-20 to 19"]);
        refuses("[default]\nnice = [0]", 2, &["nice"]);
        refuses("[default]\nnice = [0, 1, 2]", 2, &["nice"]);
        refuses("[default]\nnice = 5", 2, &["nice"]);
        refuses(
            "[default]\ntask_budget_us = 10000001",
            2,
            &["task_budget_us", "10000000"],
        );
        refuses(
            "[default]\ntask_budget_us = -1",
            2,
            &["task_budget_us", "0 to"],
        );
        refuses(
            "[default]\nirq_budget_us = 1000001",
            2,
            &["irq_budget_us", "1000000"],
        );
        refuses(
            "[default]\nirq_budget_us = 99999999999999999999",
            2,
            &["irq_budget_us"],
        );
        refuses("[default]\ngroups = 'mine'", 2, &["groups", "mine", "own"]);
        refuses(
            "[default]\nprotocols = ['latency', 'bandwidth']",
            2,
            &["bandwidth", "latency"],
        );
        refuses("[default]\nprotocols = 'latency'", 2, &["protocols"]);
        refuses("[default]\nname = 'x'", 2, &["name", "[[vm]]"]);
        refuses("[default]\nuser = 0", 2, &["user", "[[vm]]"]);
        refuses(
            "[[vm]]\nname = 'a'\n[[vm]]\nclass = 'rt'",
            3,
            &["[[vm]]", "name", "user"],
        );
        refuses("[[vm]]\nname = ''", 2, &["name"]);
        refuses("[[vm]]\nname = 'a[b'", 2, &["name", "pattern"]);
        refuses("[[vm]]\nuser = 'nosuch'", 2, &["user", "nosuch"]);
        refuses("[[vm]]\nuser = -1", 2, &["user", "-1"]);
        refuses("[[vm]]\nuser = 4294967295", 2, &["user"]);
        refuses("[[vm]]\nuser = 1.5", 2, &["user", "name or number"]);
        refuses("[[vm]]\nname = 'a'\nname = 'b'", 3, &["name"]);
    }

    #[test]
    fn the_users_of_this_host_are_found() {
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(uid_of("no such user"), None);
    }

    /// In the example, `# ` begins words for people and `#` alone a setting that is not in force.
    #[test]
    fn the_example_changes_nothing_and_shows_every_key() {
        assert_eq!(parse(EXAMPLE), Ok(Config::same_for_all(base())));
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
                _ => line,
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = parse(&uncommented).unwrap();
        assert_eq!(config.default, base());
        assert!(!config.rules.is_empty());
        for key in [
            "name",
            "user",
            "class",
            "rt_prio_max",
            "nice",
            "task_budget_us",
            "irq_budget_us",
            "groups",
            "protocols",
        ] {
            let sets = |line: &str| line.starts_with(&format!("{key} = "));
            assert!(uncommented.lines().any(sets), "{key} is not shown");
        }
    }

    /// Lines that are sections and settings more often than not.
    fn line() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "name",
            "user",
            "class",
            "rt_prio_max",
            "nice",
            "task_budget_us",
            "irq_budget_us",
            "groups",
            "protocols",
            "x",
        ]);
        let value = prop_oneof![
            any::<i64>().prop_map(|value| value.to_string()),
            (-30i64..200).prop_map(|value| value.to_string()),
            (-25i64..25, -25i64..25).prop_map(|(low, high)| format!("[{low}, {high}]")),
            prop::sample::select(vec![
                "'rt'",
                "'normal'",
                "'deadline'",
                "'own'",
                "'none'",
                "'latency'",
                "['latency']",
                "'a*'",
                "[]",
                "true",
                "1.5",
            ])
            .prop_map(str::to_owned),
            "\"[ -~]{0,8}\"",
        ];
        prop_oneof![
            4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
            1 => Just("[default]".to_owned()),
            1 => Just("[[vm]]".to_owned()),
        ]
    }

    fn check(text: &str) -> Result<(), TestCaseError> {
        let Ok(config) = parse(text) else {
            return Ok(());
        };
        let rules = config.rules.iter().map(|rule| &rule.allowed);
        for allowed in rules.chain([&config.default]) {
            prop_assert!(RT_PRIO.contains(&allowed.rt_prio_max));
            prop_assert!(NICE.contains(allowed.nice.start()) && NICE.contains(allowed.nice.end()));
            prop_assert!(!allowed.nice.is_empty());
            prop_assert!(TASK_BUDGET_US.contains(&allowed.task_budget_us));
            prop_assert!(IRQ_BUDGET_US.contains(&allowed.irq_budget_us));
            let vm = allowed.to_pv_vm();
            prop_assert!(vm.rank_max <= crate::policy::arithmetic::PV_RANK_MAX);
            prop_assert!(0 < vm.weight_min && vm.weight_min <= vm.weight_max);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn no_line_panics_and_what_is_accepted_is_in_range(
            lines in prop::collection::vec(line(), 0..6),
        ) {
            check(&lines.join("\n"))?;
        }

        #[test]
        fn one_setting_is_accepted_in_range_only(line in line()) {
            check(&format!("[default]\nclass = 'rt'\n{line}"))?;
            check(&format!("[[vm]]\nname = '*'\n{line}"))?;
        }
    }
}
