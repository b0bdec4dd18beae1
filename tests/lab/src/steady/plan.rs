//! What happens in the mix: for each actor an endless sequence of steps, the same for the same seed.

use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;

use super::action::{Action, Cpus, Grants, Group, Kind, Policy, Work};

/// Guests that may be there at a time. Three were too many for two emulated CPUs to boot within 90 s.
pub const GUESTS: u8 = 2;

/// Cgroups that hold no tasks but other cgroups, and cgroups with tasks, at most.
const SLICES: u8 = 2;
const SCOPES: u8 = 5;

/// Who acts: each by itself, at the same time as all others, and one step after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Boots and ends the guests of one place.
    Guest(u8),
    /// Starts and ends host tasks.
    Tasks,
    /// Changes policies, nice values and affinities.
    Policies,
    /// Makes, changes and removes cgroups, and moves tasks.
    Cgroups,
    /// Takes CPU 1 away and brings it back.
    Cpus,
    /// Has the scheduler read its configuration again.
    Operator,
}

impl Actor {
    pub fn all() -> impl Iterator<Item = Self> {
        let others = [
            Self::Tasks,
            Self::Policies,
            Self::Cgroups,
            Self::Cpus,
            Self::Operator,
        ];
        (0..GUESTS).map(Self::Guest).chain(others)
    }

    fn number(self) -> u64 {
        match self {
            Self::Tasks => 0,
            Self::Policies => 1,
            Self::Cgroups => 2,
            Self::Cpus => 3,
            Self::Operator => 4,
            Self::Guest(place) => 5 + u64::from(place),
        }
    }

    /// From one step to the next, in milliseconds.
    fn pause(self, action: &Action) -> RangeInclusive<u64> {
        match (self, action) {
            (Self::Guest(_), Action::Boot(_)) => 500..=4_000,
            (Self::Guest(_), _) => 5_000..=25_000,
            (Self::Tasks, _) => 3_000..=12_000,
            (Self::Policies, _) => 200..=1_500,
            (Self::Cgroups, _) => 300..=2_000,
            // As a rule the scheduler is back by then: it loads in 20 s beside guests that boot.
            (Self::Cpus, Action::Offline) => 25_000..=45_000,
            (Self::Cpus, _) => 15_000..=35_000,
            (Self::Operator, _) => 3_000..=12_000,
        }
    }
}

/// An action, and the time from the end of the one before to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub pause: Duration,
    pub action: Action,
}

/// The steps of one actor, without end.
pub struct Plan {
    actor: Actor,
    rng: Rng,
    guest: Option<Kind>,
    online: bool,
    slices: [bool; SLICES as usize],
    /// Of each scope that there is, the slice that it is in.
    scopes: [Option<Option<u8>>; SCOPES as usize],
}

impl Plan {
    pub fn new(seed: u64, actor: Actor) -> Self {
        // Far apart, so that no actor has the sequence of another one of a seed nearby.
        let stride = 0x9e37_79b9_7f4a_7c15_u64;
        let own = seed.wrapping_add(stride.wrapping_mul(actor.number() + 1));
        Self {
            actor,
            rng: Rng::with_seed(own),
            guest: None,
            online: true,
            slices: [false; SLICES as usize],
            scopes: [None; SCOPES as usize],
        }
    }

    fn action(&mut self) -> Action {
        match self.actor {
            Actor::Guest(_) => self.of_guest(),
            Actor::Tasks => self.of_tasks(),
            Actor::Policies => self.of_policies(),
            Actor::Cgroups => self.of_cgroups(),
            Actor::Cpus => {
                self.online = !self.online;
                if self.online {
                    Action::Online
                } else {
                    Action::Offline
                }
            }
            Actor::Operator => Action::Reload(self.pick(&[
                Grants::Defaults,
                Grants::NormalOnly,
                Grants::SmallBudgets,
                Grants::ByName,
                Grants::Broken,
            ])),
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn of_guest(&mut self) -> Action {
        if let Some(kind) = self.guest.take() {
            // Only a guest with a device can lose it.
            let ends = [Action::Shutdown, Action::KillVmm, Action::KillDevice];
            let possible = if kind.device { &ends[..] } else { &ends[..2] };
            return self.pick(possible);
        }
        let kind = Kind {
            vcpus: self.rng.u32(1..=2),
            device: self.rng.u32(..4) != 0,
            work: self.pick(&[Work::RealTime, Work::Ordinary, Work::Idle]),
        };
        self.guest = Some(kind);
        Action::Boot(kind)
    }

    fn of_tasks(&mut self) -> Action {
        if self.rng.bool() {
            Action::Replace {
                whom: self.rng.u32(..),
            }
        } else {
            Action::Hackbench {
                groups: self.rng.u32(1..=3),
                loops: self.rng.u32(10..=50),
            }
        }
    }

    fn of_policies(&mut self) -> Action {
        let whom = self.rng.u32(..);
        match self.rng.u32(..4) {
            0 => Action::SetNice {
                whom,
                nice: self.rng.i32(-20..=19),
            },
            1 => Action::SetAffinity {
                whom,
                cpus: self.cpus(),
            },
            _ => Action::SetPolicy {
                whom,
                policy: self.pick(&[
                    Policy::Other,
                    Policy::Batch,
                    Policy::Idle,
                    Policy::Fifo,
                    Policy::RoundRobin,
                ]),
            },
        }
    }

    fn cpus(&mut self) -> Cpus {
        self.pick(&[Cpus::Zero, Cpus::One, Cpus::Both])
    }

    fn of_cgroups(&mut self) -> Action {
        let groups = self.groups();
        if groups.is_empty() || self.rng.u32(..4) == 0 {
            if let Some(action) = self.make_or_remove() {
                return action;
            }
        }
        let group = self.pick(&groups);
        match self.rng.u32(..8) {
            0 => Action::SetWeight(group, self.pick(&[1, 50, 100, 300, 1_000, 10_000])),
            1 => Action::SetQuota(
                group,
                self.pick(&[
                    None,
                    Some((20_000, 100_000)),
                    Some((25_000, 50_000)),
                    Some((5_000, 10_000)),
                ]),
            ),
            2 => Action::SetIdle(group, self.rng.bool()),
            3 => Action::SetCpus(group, self.cpus()),
            _ => {
                let scopes: Vec<_> = groups
                    .into_iter()
                    .filter(|group| group.scope.is_some())
                    .collect();
                let to = (!scopes.is_empty() && self.rng.u32(..4) != 0).then(|| self.pick(&scopes));
                Action::Move {
                    whom: self.rng.u32(..),
                    to,
                }
            }
        }
    }

    /// Those that there are by now.
    fn groups(&self) -> Vec<Group> {
        let slices = (0..).zip(self.slices).filter(|(_, there)| *there);
        let slices = slices.map(|(slice, _)| Group {
            slice: Some(slice),
            scope: None,
        });
        let scopes = (0..).zip(self.scopes);
        let scopes = scopes.filter_map(|(scope, there)| {
            there.map(|slice| Group {
                slice,
                scope: Some(scope),
            })
        });
        slices.chain(scopes).collect()
    }

    /// What is there goes, what is not comes; a slice with scopes in it has to stay.
    fn make_or_remove(&mut self) -> Option<Action> {
        if self.rng.u32(..4) == 0 {
            let slice = self.rng.u8(..SLICES);
            let there = &mut self.slices[usize::from(slice)];
            if *there && self.scopes.contains(&Some(Some(slice))) {
                return None;
            }
            *there = !*there;
            let group = Group {
                slice: Some(slice),
                scope: None,
            };
            return Some(if *there {
                Action::MakeGroup(group)
            } else {
                Action::RemoveGroup(group)
            });
        }
        let number = self.rng.u8(..SCOPES);
        let scope = Some(number);
        if let Some(slice) = self.scopes[usize::from(number)].take() {
            return Some(Action::RemoveGroup(Group { slice, scope }));
        }
        let slice = self.rng.u8(..=SLICES);
        let slice = (slice < SLICES && self.slices[usize::from(slice)]).then_some(slice);
        self.scopes[usize::from(number)] = Some(slice);
        Some(Action::MakeGroup(Group { slice, scope }))
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let action = self.action();
        let pause = Duration::from_millis(self.rng.u64(self.actor.pause(&action)));
        Some(Step { pause, action })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn steps(seed: u64, actor: Actor, within: Duration) -> Vec<Step> {
        let mut time = Duration::ZERO;
        let in_time = |step: &Step| {
            time += step.pause;
            time <= within
        };
        Plan::new(seed, actor).take_while(in_time).collect()
    }

    #[test]
    fn a_seed_makes_the_same_mix_every_time_and_another_one_does_not() {
        for actor in Actor::all() {
            let minutes = Duration::from_secs(600);
            assert_eq!(
                steps(7, actor, minutes),
                steps(7, actor, minutes),
                "{actor:?}"
            );
            assert_ne!(
                steps(7, actor, minutes),
                steps(8, actor, minutes),
                "{actor:?}"
            );
        }
        let minutes = Duration::from_secs(600);
        assert_ne!(
            steps(7, Actor::Guest(0), minutes),
            steps(7, Actor::Guest(1), minutes)
        );
    }

    #[test]
    fn everything_there_is_happens() {
        let long = Duration::from_secs(1800);
        let names: BTreeSet<_> = Actor::all()
            .flat_map(|actor| steps(1, actor, long))
            .map(|step| step.action.name())
            .collect();
        assert_eq!(names.len(), 19, "{names:?}");
    }

    /// Also within the three minutes of the short form, but for what is a matter of luck.
    #[test]
    fn a_short_mix_has_something_of_each_actor() {
        for seed in 0..200 {
            for actor in Actor::all() {
                let count = steps(seed, actor, Duration::from_secs(150)).len();
                let least = if actor == Actor::Cpus { 3 } else { 6 };
                assert!(count >= least, "seed {seed}: {count} steps of {actor:?}");
            }
        }
    }

    #[test]
    fn guests_and_cpus_come_and_go_by_turns() {
        for seed in 0..50 {
            let mut with_device = None;
            for step in Plan::new(seed, Actor::Guest(1)).take(200) {
                match step.action {
                    Action::Boot(kind) => {
                        assert_eq!(with_device.replace(kind.device), None);
                    }
                    Action::KillDevice => assert_eq!(with_device.take(), Some(true)),
                    Action::Shutdown | Action::KillVmm => assert!(with_device.take().is_some()),
                    other => panic!("{other:?}"),
                }
            }
            let cpus = Plan::new(seed, Actor::Cpus).map(|step| step.action);
            let turns: Vec<_> = cpus.take(4).collect();
            assert_eq!(turns, [Action::Offline, Action::Online].repeat(2));
        }
    }

    #[test]
    fn cgroups_are_there_when_something_is_done_to_them_and_slices_outlive_their_scopes() {
        for seed in 0..50 {
            let mut there = BTreeSet::new();
            for step in Plan::new(seed, Actor::Cgroups).take(2_000) {
                let has = |group: &Group| there.contains(&group.to_string());
                match step.action {
                    Action::MakeGroup(group) => {
                        let slice = group.slice.filter(|_| group.scope.is_some());
                        let slice = slice.map(|slice| Group {
                            slice: Some(slice),
                            scope: None,
                        });
                        assert!(slice.is_none_or(|slice| has(&slice)), "{group}");
                        assert!(there.insert(group.to_string()), "{group}");
                    }
                    Action::RemoveGroup(group) => {
                        assert!(there.remove(&group.to_string()), "{group}");
                        let within = there
                            .iter()
                            .any(|other| other.starts_with(&group.to_string()));
                        assert!(!within, "{group} in {there:?}");
                    }
                    Action::SetWeight(group, weight) => {
                        assert!(has(&group) && (1..=10_000).contains(&weight), "{group}");
                    }
                    Action::SetQuota(group, _)
                    | Action::SetIdle(group, _)
                    | Action::SetCpus(group, _) => assert!(has(&group), "{group}"),
                    // Not into a slice: those have no tasks of their own.
                    Action::Move {
                        to: Some(group), ..
                    } => {
                        assert!(has(&group) && group.scope.is_some(), "{group}");
                    }
                    Action::Move { to: None, .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
