// SPDX-License-Identifier: GPL-2.0-only
//! CPUs for the vCPUs of exclusion groups.
//!
//! Each vCPU that has a group is given a home: the one CPU that it runs on from then on. [`place`]
//! works homes out of what there is, without any state.
//!
//! That no two of a group share a CPU is a matching of vCPUs and CPUs. It starts from the homes
//! there are and grows by augmenting paths, so it is as large as one can be, and a vCPU moves only
//! where that makes room for another.

use std::collections::{BTreeMap, BTreeSet};

use super::Role;

/// How many rounds of moves even out the CPUs' loads at most; one or two are the rule.
const EVEN_ROUNDS: u32 = 16;

/// What a guest declared for one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What it is for.
    pub role: Role,
    /// 0 for none.
    pub group: u16,
}

impl From<u32> for Declared {
    /// From `pvsched_page.role`, of which the low half says all.
    fn from(word: u32) -> Self {
        let [_, low, high, _] = word.to_le_bytes();
        Self {
            role: Role::of_word(word),
            group: u16::from_le_bytes([low, high]),
        }
    }
}

/// A vCPU: the number of its VM, and its APIC id.
pub type Id = (u32, u32);

/// An exclusion group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// `None` where VMs share their groups.
    pub vm: Option<u32>,
    /// As the guest numbers it.
    pub number: u16,
}

/// A vCPU that has a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one.
    pub id: Id,
    /// Its group.
    pub group: Group,
    /// Whether it is latency-critical.
    pub latency: bool,
    /// The CPUs that its thread's affinity allows.
    pub allowed: Vec<u32>,
}

impl Member {
    /// How much it counts where CPUs are compared: others leave a latency-critical vCPU its CPU.
    fn weight(&self) -> u32 {
        if self.latency {
            2
        } else {
            1
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    core: usize,
    llc: usize,
}

/// Which CPUs are siblings of one core, and which have a last-level cache in common.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    cpus: BTreeMap<u32, Place>,
}

impl Cores {
    /// Those CPUs, each with its number, the number of its core and that of its last-level cache.
    #[must_use]
    pub fn new(cpus: impl IntoIterator<Item = (u32, usize, usize)>) -> Self {
        let place = |(cpu, core, llc)| (cpu, Place { core, llc });
        Self {
            cpus: cpus.into_iter().map(place).collect(),
        }
    }

    fn core(&self, cpu: u32) -> Option<usize> {
        self.cpus.get(&cpu).map(|place| place.core)
    }

    fn llc(&self, cpu: u32) -> Option<usize> {
        self.cpus.get(&cpu).map(|place| place.llc)
    }
}

/// What [`place`] came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The home of each vCPU that has an allowed CPU.
    pub homes: BTreeMap<Id, u32>,
    /// vCPUs that share a CPU, or a core where that is not wanted, with one of their group.
    pub shared: BTreeMap<Group, u64>,
}

/// Which CPUs exclude each other within a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Cpu,
    Core,
}

/// Weight of the members of all groups whose home a CPU, or a core, is.
#[derive(Default)]
struct Loads {
    cpus: BTreeMap<u32, u32>,
    cores: BTreeMap<usize, u32>,
}

impl Loads {
    fn of(&self, cpu: u32) -> u32 {
        self.cpus.get(&cpu).copied().unwrap_or(0)
    }

    fn of_core(&self, core: usize) -> u32 {
        self.cores.get(&core).copied().unwrap_or(0)
    }

    fn add(&mut self, cores: &Cores, cpu: u32, weight: u32) {
        *self.cpus.entry(cpu).or_default() += weight;
        if let Some(core) = cores.core(cpu) {
            *self.cores.entry(core).or_default() += weight;
        }
    }

    fn remove(&mut self, cores: &Cores, cpu: u32, weight: u32) {
        *self.cpus.entry(cpu).or_default() -= weight;
        if let Some(core) = cores.core(cpu) {
            *self.cores.entry(core).or_default() -= weight;
        }
    }
}

/// Homes of one group while they are worked out.
struct Placing<'a> {
    cores: &'a Cores,
    members: Vec<&'a Member>,
    /// By member: the home it had, the one it gets.
    before: Vec<Option<u32>>,
    homes: Vec<Option<u32>>,
    unit: Unit,
    /// By unit: the member that has it.
    taken: BTreeMap<usize, usize>,
    /// Each member has a unit of its own.
    whole: bool,
}

impl Placing<'_> {
    fn unit_of(&self, cpu: u32) -> Option<usize> {
        match self.unit {
            Unit::Cpu => usize::try_from(cpu).ok(),
            Unit::Core => self.cores.core(cpu),
        }
    }

    /// Gives a member another home, or none, and keeps the sums.
    fn set(&mut self, loads: &mut Loads, member: usize, home: Option<u32>) {
        let weight = self.members[member].weight();
        if let Some(old) = self.homes[member] {
            loads.remove(self.cores, old, weight);
        }
        if let Some(new) = home {
            loads.add(self.cores, new, weight);
        }
        self.homes[member] = home;
    }

    fn take(&mut self, loads: &mut Loads, member: usize, unit: usize, cpu: u32) {
        self.taken.insert(unit, member);
        self.set(loads, member, Some(cpu));
    }

    /// The cache domain that a member without a home should be near to: that of most of its group.
    fn domain(&self) -> Option<usize> {
        let mut counts = BTreeMap::<usize, u32>::new();
        for home in self.homes.iter().flatten() {
            if let Some(llc) = self.cores.llc(*home) {
                *counts.entry(llc).or_default() += 1;
            }
        }
        counts
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(llc, _)| llc)
    }

    /// The CPUs that a member may have, the best first: the one it had, then the emptiest, then
    /// one with the same cache.
    fn candidates(&self, loads: &Loads, member: usize) -> Vec<u32> {
        let before = self.before[member];
        let near = before
            .and_then(|cpu| self.cores.llc(cpu))
            .or_else(|| self.domain());
        let mut cpus: Vec<_> = self.members[member]
            .allowed
            .iter()
            .filter_map(|cpu| Some((*cpu, self.cores.cpus.get(cpu)?)))
            .map(|(cpu, place)| {
                let far = near.is_some_and(|llc| llc != place.llc);
                let key = (
                    before != Some(cpu),
                    loads.of(cpu),
                    far,
                    loads.of_core(place.core),
                );
                (key, cpu)
            })
            .collect();
        cpus.sort_unstable();
        cpus.into_iter().map(|(_, cpu)| cpu).collect()
    }

    /// Finds a unit for a member; others of the group move on where that makes room. `seen` are
    /// units of which it is known that they cannot be had.
    fn augment(&mut self, loads: &mut Loads, member: usize, seen: &mut BTreeSet<usize>) -> bool {
        let candidates = self.candidates(loads, member);
        for cpu in &candidates {
            if let Some(unit) = self.unit_of(*cpu) {
                if !self.taken.contains_key(&unit) {
                    self.take(loads, member, unit, *cpu);
                    return true;
                }
            }
        }
        for cpu in candidates {
            let Some(unit) = self.unit_of(cpu) else {
                continue;
            };
            let holder = self.taken.get(&unit).copied();
            if seen.insert(unit) && holder.is_some_and(|holder| self.augment(loads, holder, seen)) {
                self.take(loads, member, unit, cpu);
                return true;
            }
        }
        false
    }

    /// A unit of its own for as many members as can have one. Returns whether all have one.
    fn match_units(&mut self, loads: &mut Loads, unit: Unit) -> bool {
        self.unit = unit;
        self.taken.clear();
        let mut left = Vec::new();
        for member in 0..self.members.len() {
            let home = self.homes[member].and_then(|cpu| self.unit_of(cpu));
            match home {
                Some(unit) if !self.taken.contains_key(&unit) => {
                    self.taken.insert(unit, member);
                }
                _ => {
                    self.set(loads, member, None);
                    left.push(member);
                }
            }
        }
        // What was seen in vain stays in vain: only a success changes who has what.
        let mut seen = BTreeSet::new();
        let mut all = true;
        for member in left {
            if self.augment(loads, member, &mut seen) {
                seen.clear();
            } else {
                all = false;
            }
        }
        all
    }

    /// For those for whom no CPU is left: one that the fewest of the group have.
    fn crowd(&mut self, loads: &mut Loads) {
        let mut counts = BTreeMap::<u32, u32>::new();
        for home in self.homes.iter().flatten() {
            *counts.entry(*home).or_default() += 1;
        }
        for member in 0..self.members.len() {
            if self.homes[member].is_some() {
                continue;
            }
            // The first of the smallest.
            let candidates = self.candidates(loads, member).into_iter();
            let best = candidates.min_by_key(|cpu| counts.get(cpu).copied().unwrap_or(0));
            if let Some(cpu) = best {
                *counts.entry(cpu).or_default() += 1;
            }
            self.set(loads, member, best);
        }
    }

    /// How many CPUs and cores a group's homes are.
    fn spread(&self, homes: &[Option<u32>]) -> (usize, usize) {
        let cpus: BTreeSet<_> = homes.iter().flatten().copied().collect();
        let cores: BTreeSet<_> = cpus.iter().map(|cpu| self.cores.core(*cpu)).collect();
        (cpus.len(), cores.len())
    }

    /// Homes for the whole group, of which no two are in the same `wanted` unit if that can be.
    fn find(&mut self, loads: &mut Loads, wanted: Unit) {
        self.whole = self.match_units(loads, wanted);
        if self.whole {
            return;
        }
        if wanted == Unit::Cpu || !self.match_units(loads, Unit::Cpu) {
            self.crowd(loads);
        }
        // Nobody moves for nothing.
        let before = self.before.clone();
        if before.iter().all(Option::is_some) && self.spread(&before) >= self.spread(&self.homes) {
            for (member, home) in before.into_iter().enumerate() {
                self.set(loads, member, home);
            }
        }
    }

    /// Moves members of a group that is not crowded to CPUs on which there is less. Returns
    /// whether there was one to move.
    fn even_out(&mut self, loads: &mut Loads) -> bool {
        let mut moved = false;
        for member in 0..self.members.len() {
            let Some(home) = self.homes[member].filter(|_| self.whole) else {
                continue;
            };
            let (weight, load) = (self.members[member].weight(), loads.of(home));
            if load == weight {
                continue;
            }
            let better = self.candidates(loads, member).into_iter().find(|cpu| {
                let holder = self.unit_of(*cpu).and_then(|unit| self.taken.get(&unit));
                loads.of(*cpu) + weight < load && holder.is_none_or(|holder| *holder == member)
            });
            let units = (self.unit_of(home), better.and_then(|cpu| self.unit_of(cpu)));
            if let (Some(cpu), (Some(old), Some(new))) = (better, units) {
                self.taken.remove(&old);
                self.take(loads, member, new, cpu);
                moved = true;
            }
        }
        moved
    }

    /// How many members share with another what none should.
    fn shared(&self, unit: Unit) -> u64 {
        let mut counts = BTreeMap::<usize, u64>::new();
        for home in self.homes.iter().flatten() {
            let unit = match unit {
                Unit::Cpu => usize::try_from(*home).ok(),
                Unit::Core => self.cores.core(*home),
            };
            if let Some(unit) = unit {
                *counts.entry(unit).or_default() += 1;
            }
        }
        counts.into_values().filter(|count| *count > 1).sum()
    }
}

/// Gives each member a home such that no two of a group share a CPU, and with `smt_isolate` no
/// core, where that is possible at all; where it is not, as few as can be. `before` are the homes
/// so far, which stay unless they have to go. Beyond that, CPUs get as equal numbers of members as
/// they can, and latency-critical ones choose first.
#[must_use]
pub fn place(
    members: &[Member],
    before: &BTreeMap<Id, u32>,
    cores: &Cores,
    smt_isolate: bool,
) -> Placement {
    let mut groups = BTreeMap::<Group, Vec<&Member>>::new();
    for member in members {
        groups.entry(member.group).or_default().push(member);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    for (_, members) in &mut groups {
        members.sort_by_key(|member| (!member.latency, member.id));
    }
    groups.sort_by_key(|(group, members)| (!members.iter().any(|one| one.latency), *group));

    // What may stay counts from the beginning, or the first groups would crowd the later ones.
    let mut loads = Loads::default();
    let mut placings = Vec::new();
    for (group, members) in groups {
        let home_of = |member: &&Member| {
            let home = before.get(&member.id).copied();
            home.filter(|cpu| member.allowed.contains(cpu) && cores.cpus.contains_key(cpu))
        };
        let homes: Vec<_> = members.iter().map(home_of).collect();
        for (member, home) in members.iter().zip(&homes) {
            if let Some(home) = home {
                loads.add(cores, *home, member.weight());
            }
        }
        let placing = Placing {
            cores,
            members,
            before: homes.clone(),
            homes,
            unit: Unit::Cpu,
            taken: BTreeMap::new(),
            whole: false,
        };
        placings.push((group, placing));
    }

    let wanted = if smt_isolate { Unit::Core } else { Unit::Cpu };
    for (_, placing) in &mut placings {
        placing.find(&mut loads, wanted);
    }
    for _ in 0..EVEN_ROUNDS {
        let mut moved = false;
        for (_, placing) in &mut placings {
            moved |= placing.even_out(&mut loads);
        }
        if !moved {
            break;
        }
    }

    let mut placement = Placement::default();
    for (group, placing) in placings {
        let shared = placing.shared(wanted);
        if shared > 0 {
            placement.shared.insert(group, shared);
        }
        for (member, home) in placing.members.iter().zip(&placing.homes) {
            if let Some(home) = home {
                placement.homes.insert(member.id, *home);
            }
        }
    }
    placement
}

#[cfg(test)]
mod tests {
    use petgraph::algo::maximum_matching;
    use petgraph::graph::UnGraph;
    use proptest::prelude::*;

    use super::*;

    /// CPUs that are numbered through: cores of `threads` siblings, cache domains of `per_llc` cores.
    fn cores(cpus: u32, threads: u32, per_llc: usize) -> Cores {
        Cores::new((0..cpus).map(|cpu| {
            let core = (cpu / threads) as usize;
            (cpu, core, core / per_llc)
        }))
    }

    fn member(id: u32, number: u16, allowed: impl IntoIterator<Item = u32>) -> Member {
        Member {
            id: (1, id),
            group: Group {
                vm: Some(1),
                number,
            },
            latency: false,
            allowed: allowed.into_iter().collect(),
        }
    }

    fn homes(placement: &Placement) -> Vec<u32> {
        placement.homes.values().copied().collect()
    }

    #[test]
    fn a_group_gets_a_cpu_each_and_cores_first() {
        let members: Vec<_> = (0..4).map(|id| member(id, 7, 0..4)).collect();
        let none = BTreeMap::new();
        let cores = cores(4, 2, 2);
        let two = place(&members[..2], &none, &cores, false);
        assert_eq!(homes(&two), [0, 2]);
        let four = place(&members, &two.homes, &cores, false);
        assert_eq!(homes(&four), [0, 2, 1, 3]);
        assert!(four.shared.is_empty());
    }

    #[test]
    fn siblings_are_kept_apart_on_demand_and_cpus_where_cores_are_too_few() {
        let members: Vec<_> = (0..3).map(|id| member(id, 7, 0..4)).collect();
        let before = BTreeMap::from([((1, 0), 0), ((1, 1), 1)]);
        let cores = cores(4, 2, 2);
        let two = place(&members[..2], &before, &cores, true);
        assert_eq!(homes(&two), [0, 2]);
        let three = place(&members, &two.homes, &cores, true);
        assert_eq!(homes(&three), [0, 2, 1]);
        assert_eq!(three.shared.values().sum::<u64>(), 2);
    }

    #[test]
    fn a_member_moves_to_make_room_for_one_that_has_no_choice() {
        let members = [member(0, 7, 0..2), member(1, 7, [0])];
        let before = BTreeMap::from([((1, 0), 0)]);
        let placement = place(&members, &before, &cores(2, 1, 2), false);
        assert_eq!(homes(&placement), [1, 0]);
    }

    #[test]
    fn a_group_stays_within_a_cache_domain_that_has_room() {
        let members: Vec<_> = (0..2).map(|id| member(id, 7, 0..4)).collect();
        let cores = cores(4, 1, 2);
        let placement = place(&members, &BTreeMap::from([((1, 0), 3)]), &cores, false);
        assert_eq!(homes(&placement), [3, 2]);
    }

    #[test]
    fn groups_of_several_vms_are_spread_and_evened_out_when_one_goes() {
        let vm = |vm: u32| {
            (0..2).map(move |id| Member {
                id: (vm, id),
                group: Group {
                    vm: Some(vm),
                    number: 1,
                },
                latency: false,
                allowed: (0..4).collect(),
            })
        };
        let cores = cores(4, 1, 4);
        let all: Vec<_> = (1..=4).flat_map(vm).collect();
        let placement = place(&all, &BTreeMap::new(), &cores, false);
        let count = |placement: &Placement, cpu| {
            let all = placement.homes.values();
            all.filter(|home| **home == cpu).count()
        };
        for cpu in 0..4 {
            assert_eq!(count(&placement, cpu), 2, "{placement:?}");
        }
        let gone = placement.homes[&(1, 0)];
        let left: Vec<_> = all
            .iter()
            .filter(|one| {
                // Only those who shared the CPUs of VM 1 stay.
                let home = placement.homes[&(one.id.0, 0)];
                one.id.0 == 1 || home == gone
            })
            .cloned()
            .collect();
        let later = place(&left, &placement.homes, &cores, false);
        for cpu in 0..4 {
            assert!(count(&later, cpu) <= 1, "{later:?}");
        }
    }

    #[test]
    fn others_leave_a_latency_critical_vcpu_its_cpu() {
        let mut urgent = member(3, 1, 0..3);
        urgent.latency = true;
        let members = [
            member(0, 2, 0..3),
            member(1, 3, 0..3),
            member(2, 4, 0..3),
            urgent,
        ];
        let placement = place(&members, &BTreeMap::new(), &cores(3, 1, 3), false);
        let home = placement.homes[&(1, 3)];
        let there = homes(&placement).iter().filter(|cpu| **cpu == home).count();
        assert_eq!(there, 1, "{placement:?}");
    }

    #[test]
    fn a_declaration_is_read_from_any_word() {
        let declared = Declared::from(0x12_34_01);
        assert_eq!((declared.role, declared.group), (Role::Latency, 0x1234));
        assert_eq!(Declared::from(u32::MAX).role, Role::None);
        assert_eq!(
            Declared::from(0),
            Declared {
                role: Role::None,
                group: 0
            }
        );
    }

    /// The most members that can have a unit of their own, by another algorithm.
    fn most(members: &[Member], unit: impl Fn(u32) -> usize) -> usize {
        let mut graph = UnGraph::<(), ()>::default();
        let left: Vec<_> = members.iter().map(|_| graph.add_node(())).collect();
        let right: Vec<_> = (0..64).map(|_| graph.add_node(())).collect();
        for (member, node) in members.iter().zip(&left) {
            for cpu in &member.allowed {
                graph.update_edge(*node, right[unit(*cpu)], ());
            }
        }
        maximum_matching(&graph).len()
    }

    fn some_members() -> impl Strategy<Value = Vec<Member>> {
        let one = (
            1_u16..4,
            any::<bool>(),
            prop::collection::btree_set(0_u32..8, 1..6),
        );
        prop::collection::vec(one, 1..14).prop_map(|all| {
            let all = all.into_iter().zip(0..);
            all.map(|((number, latency, allowed), id)| Member {
                latency,
                ..member(id, number, allowed)
            })
            .collect()
        })
    }

    fn some_homes() -> impl Strategy<Value = BTreeMap<Id, u32>> {
        prop::collection::btree_map((Just(1), 0_u32..14), 0_u32..9, 0..14)
    }

    proptest! {
        #[test]
        fn as_many_as_can_have_a_cpu_or_core_of_their_own(
            members in some_members(),
            before in some_homes(),
            smt_isolate: bool,
            threads in 1_u32..=2,
        ) {
            let cores = cores(8, threads, 2);
            let placement = place(&members, &before, &cores, smt_isolate);
            for number in 1..4 {
                let group: Vec<_> =
                    members.iter().filter(|one| one.group.number == number).cloned().collect();
                let distinct = |unit: &dyn Fn(u32) -> usize| {
                    let homes = group.iter().map(|one| unit(placement.homes[&one.id]));
                    homes.collect::<BTreeSet<_>>().len()
                };
                let cpu = |cpu: u32| cpu as usize;
                let core = |cpu: u32| cores.core(cpu).unwrap();
                prop_assert_eq!(distinct(&cpu), most(&group, cpu));
                if smt_isolate && most(&group, core) == group.len() {
                    prop_assert_eq!(distinct(&core), group.len());
                }
            }
        }

        #[test]
        fn every_home_is_allowed(
            members in some_members(),
            before in some_homes(),
            smt_isolate: bool,
        ) {
            let placement = place(&members, &before, &cores(8, 2, 2), smt_isolate);
            for one in &members {
                prop_assert!(one.allowed.contains(&placement.homes[&one.id]));
            }
        }

        #[test]
        fn homes_stay_when_nothing_changes(
            members in some_members(),
            before in some_homes(),
            smt_isolate: bool,
        ) {
            let cores = cores(8, 2, 2);
            let once = place(&members, &before, &cores, smt_isolate);
            let twice = place(&members, &once.homes, &cores, smt_isolate);
            prop_assert_eq!(twice, once);
        }

        #[test]
        fn whoever_shares_is_counted(
            members in some_members(),
            before in some_homes(),
        ) {
            let placement = place(&members, &before, &cores(8, 2, 2), false);
            let alone = |one: &Member| {
                let home = placement.homes[&one.id];
                !members.iter().any(|other| {
                    other.id != one.id
                        && other.group == one.group
                        && placement.homes[&other.id] == home
                })
            };
            let shared = members.iter().filter(|one| !alone(one)).count() as u64;
            prop_assert_eq!(placement.shared.values().sum::<u64>(), shared);
        }
    }
}
