// SPDX-License-Identifier: GPL-2.0-only
//! What policies are made of.
//!
//! - [`arithmetic`]: weights, shares, budgets; the same text that the BPF scheduler is compiled from
//! - [`homes`]: CPUs for exclusion groups

pub mod arithmetic;
pub mod homes;
