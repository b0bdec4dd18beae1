// SPDX-License-Identifier: GPL-2.0-only
//! The scheduler's numbers in words.

use super::super::bpf::intf;
use crate::policy::arithmetic::{
    PV_BOOST_IRQ, PV_BOOST_NONE, PV_BOOST_TASK, PV_RANK_DEADLINE, PV_RANK_IRQ, PV_RANK_NONE,
    PV_RANK_RT_BASE,
};

/// `VERDICT()` of `bpf/boost.bpf.h`: whether a vCPU is boosted, why, and of what rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    boost: u32,
    rank: u32,
}

impl Verdict {
    /// Not boosted.
    pub const NONE: Self = Self {
        boost: PV_BOOST_NONE,
        rank: PV_RANK_NONE,
    };

    pub fn is_boost(self) -> bool {
        self.boost != PV_BOOST_NONE
    }

    pub fn is_for_task(self) -> bool {
        self.boost == PV_BOOST_TASK
    }

    pub fn rank(self) -> u64 {
        self.rank.into()
    }
}

impl From<u64> for Verdict {
    fn from(verdict: u64) -> Self {
        let part = |shift: u32| u32::from(u16::try_from(verdict >> shift & 0xffff).unwrap_or(0));
        Self {
            boost: part(16),
            rank: part(0),
        }
    }
}

/// Why a vCPU is ahead.
pub fn cause(verdict: Verdict) -> String {
    match verdict.boost {
        PV_BOOST_TASK => format!("task, {}", rank_name(verdict.rank())),
        PV_BOOST_IRQ if verdict.rank > PV_RANK_IRQ => {
            format!("interrupt for {}", rank_name(verdict.rank()))
        }
        PV_BOOST_IRQ => "interrupt".to_owned(),
        _ => "none".to_owned(),
    }
}

/// A rank of `bpf/policy.h`, in the words of chrt(1).
pub fn rank_name(rank: u64) -> String {
    match u32::try_from(rank).unwrap_or(u32::MAX) {
        PV_RANK_NONE => "nothing urgent".to_owned(),
        PV_RANK_IRQ => "interrupt".to_owned(),
        rank if rank < PV_RANK_DEADLINE => format!("rt {}", rank - PV_RANK_RT_BASE),
        PV_RANK_DEADLINE => "deadline".to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Where a hint came from: `enum pv_hint_source`.
pub fn hint_name(source: u64) -> &'static str {
    match u32::try_from(source).unwrap_or(u32::MAX) {
        intf::pv_hint_source_PV_HINT_TIMER => "timer",
        intf::pv_hint_source_PV_HINT_IRQ => "interrupt",
        intf::pv_hint_source_PV_HINT_KICK => "kick",
        intf::pv_hint_source_PV_HINT_WAKE => "wake-up",
        intf::pv_hint_source_PV_HINT_DUE => "timer is due",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judgement_is_told_with_cause_and_rank() {
        let verdict = |boost: u32, rank: u32| Verdict::from(u64::from(boost << 16 | rank));
        assert_eq!(cause(verdict(PV_BOOST_TASK, 91)), "task, rt 90");
        assert_eq!(
            cause(verdict(PV_BOOST_TASK, PV_RANK_DEADLINE)),
            "task, deadline"
        );
        assert_eq!(cause(verdict(PV_BOOST_IRQ, PV_RANK_IRQ)), "interrupt");
        assert_eq!(cause(verdict(PV_BOOST_IRQ, 51)), "interrupt for rt 50");
        assert!(!Verdict::from(0).is_boost() && verdict(PV_BOOST_IRQ, 1).is_boost());
    }

    #[test]
    fn what_a_newer_scheduler_says_is_unknown() {
        assert_eq!(rank_name(u64::MAX), "unknown");
        assert_eq!(hint_name(99), "unknown");
        assert_eq!(cause(Verdict::from(7 << 16)), "none");
    }
}
