// SPDX-License-Identifier: GPL-2.0-only
//! What `cpu.weight` of cgroups needs of the scheduler process: numbers for them, and how much less
//! tasks weigh because of them. The rest is in `bpf/groups.bpf.h`.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};
use scx_utils::compat;

use super::bpf::main_skel::MainSkel;
use super::bpf::{intf, MapValue};
use crate::policy::arithmetic::PV_SHIFT_MAX;

#[allow(clippy::cast_possible_wrap)]
const MOST: i32 = PV_SHIFT_MAX as i32;

/// Whether the kernel tells a scheduler of cgroups and their weights.
///
/// # Errors
/// When the kernel's types cannot be read.
pub fn are_known() -> Result<bool> {
    compat::struct_has_field("sched_ext_ops", "cgroup_set_weight")
}

/// Makes every number free but that of the root. To be done before the kernel tells of cgroups.
///
/// # Errors
/// When the kernel refuses.
pub fn make_numbers(skel: &MainSkel) -> Result<()> {
    // The last one is taken first: small numbers are next to each other in memory.
    for number in (1..intf::PV_MAX_GROUPS).rev() {
        skel.maps
            .free_groups
            .update(&[], &number.to_ne_bytes(), MapFlags::ANY)
            .context("cannot number cgroups")?;
    }
    Ok(())
}

/// Tells how much less tasks weigh, on average, than they would without cgroups.
///
/// # Errors
/// When a map cannot be read.
pub fn scale(skel: &mut MainSkel) -> Result<()> {
    let per_cpu = skel
        .maps
        .wanting
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)?
        .context("the map of weights is empty")?;
    let (mut all, mut root) = (0, 0);
    for cpu in per_cpu {
        let wanting = intf::pv_wanting::from_bytes(&cpu)?;
        all += wanting.all;
        root += wanting.root;
    }
    let bss = skel.maps.bss_data.as_mut().context("no variables")?;
    bss.weight_shift = shift(bss.weight_shift, all, root + bss.root_groups);
    Ok(())
}

/// The power of two that `tasks`, the weights of all tasks that want to run, are of `root`, those of
/// the tasks and cgroups in the root; `now` while that is about right.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn shift(now: i32, tasks: i64, root: i64) -> i32 {
    if tasks <= 0 || root <= 0 {
        return now;
    }
    let exact = (tasks as f64 / root as f64).log2();
    if (exact - f64::from(now)).abs() < 1.0 {
        return now;
    }
    // A double's logarithm is within the range of an i32.
    (exact.round() as i32).clamp(-MOST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: i64 = 100 * 1024;

    #[test]
    fn without_cgroups_nothing_is_divided() {
        assert_eq!(shift(0, 6 * ONE, 6 * ONE), 0);
        // Nobody wants to run, or the sums were read while they changed.
        assert_eq!(shift(3, 0, 0), 3);
        assert_eq!(shift(3, 5, -5), 3);
    }

    #[test]
    fn many_tasks_in_one_cgroup_weigh_little() {
        assert_eq!(shift(0, 64 * ONE, ONE), 6);
        assert_eq!(shift(0, i64::MAX, 1), MOST);
    }

    #[test]
    fn a_heavy_cgroup_does_not_make_its_task_heavy_where_it_is_alone() {
        assert_eq!(shift(0, ONE, 100 * ONE), -7);
        assert_eq!(shift(0, 1, i64::MAX), -MOST);
    }

    #[test]
    fn a_little_more_or_less_changes_nothing() {
        assert_eq!(shift(2, 7 * ONE, ONE), 2);
        assert_eq!(shift(2, 3 * ONE, ONE), 2);
        assert_eq!(shift(2, 8 * ONE, ONE), 3);
    }
}
