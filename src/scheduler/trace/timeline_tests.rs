// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the timeline.

use serde_json::Value;

use super::super::super::bpf::MapValue;
use super::*;

const VCPU: i32 = 700;
const HOG: i32 = 800;

fn record(at: u64, what: u32, tid: i32, value: u64, more: u64) -> intf::pv_record {
    intf::pv_record {
        at,
        what,
        tid,
        value,
        more,
        ..intf::pv_record::zeroed()
    }
}

fn switch(at: u64, prev: i32, runnable: bool, next: i32) -> intf::pv_record {
    let mut comm = [0; 16];
    comm[..3].copy_from_slice(&[b'h', b'o', b'g'].map(u8::cast_signed));
    intf::pv_record {
        comm,
        ..record(
            at,
            intf::pv_recorded_PV_RECORDED_SWITCH,
            next,
            prev.unsigned_abs().into(),
            runnable.into(),
        )
    }
}

fn verdict(boost: u32, rank: u32) -> u64 {
    u64::from(boost << 16 | rank)
}

/// Per event that is not a description: kind, track's name, and name.
fn told(records: &[intf::pv_record]) -> Vec<String> {
    let known = Known {
        vm: 1,
        vm_name: "guest".into(),
        apic_id: 0,
    };
    let names = Names::from([(VCPU, known)]);
    let programs = vec!["pvsched_tick".to_owned()];
    let mut timeline = Timeline::new(Vec::new(), programs, names, Comms::new()).unwrap();
    for record in records {
        timeline.add(record).unwrap();
    }
    let (text, _) = timeline.finish(&facts!()).unwrap();
    let trace: Value = serde_json::from_slice(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let track = |tid: &Value| {
        events
            .iter()
            .find(|e| e["name"] == "thread_name" && e["tid"] == *tid)
            .and_then(|e| e["args"]["name"].as_str()?.split(' ').next())
            .unwrap()
            .to_owned()
    };
    events
        .iter()
        .filter(|event| event["ph"] != "M")
        .map(|event| {
            let what = event["name"].as_str().unwrap_or_default();
            let what = format!(
                "{} {} {what}",
                event["ph"].as_str().unwrap(),
                track(&event["tid"])
            );
            what.trim_end().to_owned()
        })
        .collect()
}

#[test]
fn a_waiting_vcpu_is_put_ahead_for_an_interrupt_and_its_task() {
    use crate::policy::arithmetic::{PV_BOOST_IRQ, PV_BOOST_TASK, PV_RANK_IRQ};
    let irq = verdict(PV_BOOST_IRQ, PV_RANK_IRQ);
    let told = told(&[
        switch(10, 0, false, VCPU),
        record(20, intf::pv_event_PV_EVENT_QUEUED, VCPU, 0, 0),
        switch(21, VCPU, true, HOG),
        record(30, intf::pv_event_PV_EVENT_HINT, VCPU, 0, 1),
        record(31, intf::pv_event_PV_EVENT_PREEMPT, VCPU, 0, 1),
        record(32, intf::pv_event_PV_EVENT_QUEUED, VCPU, 1, irq),
        record(33, intf::pv_event_PV_EVENT_BOOST, VCPU, irq, 0),
        switch(34, HOG, true, VCPU),
        record(35, intf::pv_recorded_PV_RECORDED_ENTRY, VCPU, 0, 0),
        record(
            40,
            intf::pv_event_PV_EVENT_BOOST,
            VCPU,
            verdict(PV_BOOST_TASK, 91),
            0,
        ),
        record(50, intf::pv_event_PV_EVENT_BOOST, VCPU, 0, 0),
        switch(60, VCPU, false, 0),
    ]);
    assert_eq!(
        told,
        [
            "B CPU guest vCPU 0",
            "B vCPU runs on CPU 0",
            "E CPU",
            "B CPU hog",
            "E vCPU",
            "B vCPU waits",
            "i vCPU hint: timer",
            "i CPU preempt for guest vCPU 0",
            "E vCPU",
            "B vCPU waits ahead: interrupt",
            "i vCPU boost begins: interrupt",
            "E CPU",
            "B CPU guest vCPU 0",
            "E vCPU",
            "B vCPU runs on CPU 0",
            "B vCPU boost: interrupt",
            "i vCPU guest entry",
            "E vCPU",
            "i vCPU boost ends: another cause",
            "i vCPU boost begins: task, rt 90",
            "B vCPU boost: task, rt 90",
            "E vCPU",
            "i vCPU boost ends: nothing urgent is left",
            "E CPU",
            "E vCPU",
            "B vCPU sleeps",
            "E vCPU",
        ]
    );
}

#[test]
fn a_budget_that_is_spent_and_a_lost_cpu_end_boosts() {
    use crate::policy::arithmetic::PV_BOOST_TASK;
    let task = verdict(PV_BOOST_TASK, 51);
    let told = told(&[
        switch(10, 0, false, VCPU),
        record(20, intf::pv_event_PV_EVENT_BOOST, VCPU, task, 0),
        record(
            30,
            intf::pv_event_PV_EVENT_SPENT,
            VCPU,
            u64::from(PV_BOOST_TASK),
            0,
        ),
        record(30, intf::pv_event_PV_EVENT_BOOST, VCPU, 0, 1),
        record(40, intf::pv_event_PV_EVENT_BOOST, VCPU, task, 0),
        switch(50, VCPU, true, HOG),
    ]);
    let instants: Vec<_> = told.iter().filter(|e| e.starts_with("i ")).collect();
    assert_eq!(
        instants,
        [
            "i vCPU boost begins: task, rt 50",
            "i vCPU throttled: budget for tasks spent",
            "i vCPU boost ends: budget spent",
            "i vCPU boost begins: task, rt 50",
            "i vCPU boost ends: turn over",
        ]
    );
    let begins = told.iter().filter(|e| e.starts_with("B ")).count();
    let ends = told.iter().filter(|e| e.starts_with("E ")).count();
    assert_eq!(begins, ends);
}

#[test]
fn vcpus_that_nobody_handed_over_and_unknown_records_do_no_harm() {
    let told = told(&[
        switch(10, 0, false, HOG),
        record(11, intf::pv_event_PV_EVENT_HINT, HOG, 1, 0),
        record(
            12,
            intf::pv_event_PV_EVENT_YIELD,
            HOG,
            VCPU.unsigned_abs().into(),
            0,
        ),
        record(13, 9999, HOG, u64::MAX, u64::MAX),
        record(14, intf::pv_event_PV_EVENT_QUEUED, HOG, u64::MAX, u64::MAX),
    ]);
    assert_eq!(
        told,
        [
            "B CPU hog",
            "i hog hint: interrupt",
            "i hog directed yield from guest vCPU 0",
            "B hog waits",
            "E CPU",
            "E hog",
        ]
    );
}
