// SPDX-License-Identifier: GPL-2.0-only
//! Fuzz targets: tests that are given random input, and say what must hold for any.
//!
//! `cargo test --package pvsched-fuzz` runs each for a bounded number of inputs; a failure prints
//! the smallest input that it could find. libFuzzer, which follows the coverage, runs one for as
//! long as one likes, on stable Rust:
//!
//!     cargo install cargo-bolero
//!     cargo bolero test --package pvsched-fuzz --sanitizer NONE policy::NAME

#[cfg(test)]
mod policy;
