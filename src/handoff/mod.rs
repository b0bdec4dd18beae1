// SPDX-License-Identifier: GPL-2.0-only
//! The handoff socket: how a VM's memory and vCPU threads reach the host scheduler.
