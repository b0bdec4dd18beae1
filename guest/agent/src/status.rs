// SPDX-License-Identifier: GPL-2.0-only
//! `pvsched-guest status`: what the driver knows, as text or JSON. The first line of the text is
//! the answer.

use std::fmt;

use anyhow::Result;
use scx_pvsched::abi;
use serde::Serialize;

use crate::driver::Driver;
use crate::roles::Declared;
use crate::run::missing;
use crate::uapi::{
    pvsched_cpu_info, pvsched_info, PVSCHED_CPU_ABSENT, PVSCHED_CPU_OFFLINE, PVSCHED_CPU_REFUSED,
    PVSCHED_CPU_SET, PVSCHED_INFO_ATTACHED, PVSCHED_INFO_BROKEN, PVSCHED_INFO_DEVICE,
    PVSCHED_INFO_NEGOTIATED, PVSCHED_INFO_PUBLISHER,
};

/// The answer. The names are those of the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Publishing,
    HostDetached,
    NotPublishing,
    Unusable,
    NoDevice,
    NoDriver,
}

#[derive(Debug, Serialize)]
pub struct Status {
    pub answer: Answer,
    /// What the answer means, and what to try.
    pub explanation: String,
    pub protocol: Option<String>,
    pub version: Option<u32>,
    pub publisher: bool,
    pub host_attached: bool,
    /// Events received from the device, and vCPU refusals among them.
    pub events: u64,
    pub refusals: u64,
    /// Notifications of the host since the driver was loaded.
    pub doorbells: u64,
    pub vcpus: Vec<Vcpu>,
}

#[derive(Debug, Serialize)]
pub struct Vcpu {
    pub cpu: u32,
    /// None while its page is not with the device.
    pub apic_id: Option<u32>,
    #[serde(flatten)]
    pub page: PageState,
    pub words: Option<Words>,
}

/// Where a CPU's page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "page", content = "code", rename_all = "kebab-case")]
pub enum PageState {
    Offline,
    /// Not with the device; what it said to that (`enum pvsched_status`).
    Unset(u32),
    Set,
    /// With the device, but the scheduler refused the vCPU (`enum pvsched_handoff_error`).
    Refused(u32),
}

/// A decoded page. The guest's words first.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Words {
    pub publishing: bool,
    pub role: &'static str,
    /// Exclusion group; 0 for none.
    pub group: u16,
    pub current: Urgency,
    pub pending: Urgency,
    pub hardirq: u8,
    pub softirq: u8,
    pub nmi: u8,
    /// Whether it holds a lock that other CPUs need soon.
    pub locked: bool,
    pub ack: u64,
    /// The first timer for an urgent task; none also where the guest cannot tell.
    pub timer: Option<Timer>,
    /// How long the latest urgent task waited; none before there was one.
    pub response: Option<Response>,
    pub applied: &'static str,
    pub notify: bool,
    pub ticket: u64,
    pub boosts: u64,
    pub throttles: u64,
}

/// The wait of an urgent task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Response {
    /// Microseconds from when its timer was due, or it was woken, until it ran.
    pub us: u64,
    /// Microseconds of those until the timer was handled.
    pub handled_us: u64,
    /// Number of such tasks, which wraps around.
    pub count: u16,
}

/// A timer that an urgent task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timer {
    #[serde(flatten)]
    pub urgency: Urgency,
    /// Microseconds that it comes after the CPU's next timer interrupt.
    pub delay_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Urgency {
    pub class: &'static str,
    /// For the class `rt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rt_prio: Option<u8>,
    /// For the classes `normal` and `batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i16>,
}

fn byte(word: u64, shift: u32) -> u8 {
    (word >> shift).to_le_bytes()[0]
}

impl From<u64> for Urgency {
    fn from(word: u64) -> Self {
        let class = u32::from(byte(word, abi::PVSCHED_URGENCY_CLASS_SHIFT));
        let nice = || {
            let offset = i16::try_from(abi::PVSCHED_NICE_OFFSET).unwrap_or_default();
            i16::from(byte(word, abi::PVSCHED_URGENCY_NICE_SHIFT)) - offset
        };
        let fair = matches!(class, abi::PVSCHED_CLASS_NORMAL | abi::PVSCHED_CLASS_BATCH);
        let rt = class == abi::PVSCHED_CLASS_RT;
        Self {
            class: match class {
                abi::PVSCHED_CLASS_NONE => "none",
                abi::PVSCHED_CLASS_IDLE_CPU => "idle-cpu",
                abi::PVSCHED_CLASS_IDLE => "idle",
                abi::PVSCHED_CLASS_BATCH => "batch",
                abi::PVSCHED_CLASS_NORMAL => "normal",
                abi::PVSCHED_CLASS_RT => "rt",
                abi::PVSCHED_CLASS_DEADLINE => "deadline",
                _ => "unknown",
            },
            rt_prio: rt.then(|| byte(word, abi::PVSCHED_URGENCY_PRIO_SHIFT)),
            nice: fair.then(nice),
        }
    }
}

impl fmt::Display for Urgency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.class, self.rt_prio, self.nice) {
            ("none", ..) => "-".to_string(),
            (class, Some(prio), _) => format!("{class} {prio}"),
            (class, _, Some(nice)) => format!("{class} {nice:+}"),
            (class, ..) => class.to_string(),
        };
        f.pad(&text)
    }
}

impl Timer {
    fn decode(word: u64) -> Option<Self> {
        let urgency =
            word >> abi::PVSCHED_TIMER_URGENCY_SHIFT & u64::from(abi::PVSCHED_TIMER_URGENCY_MASK);
        (urgency != 0).then(|| Self {
            urgency: (urgency << abi::PVSCHED_URGENCY_PRIO_SHIFT).into(),
            delay_us: word & u64::from(abi::PVSCHED_TIMER_DELAY_MASK),
        })
    }
}

impl Response {
    fn decode(word: u64) -> Option<Self> {
        let us = |word: u64| word & u64::from(abi::PVSCHED_RESPONSE_US_MAX);
        (word != 0).then(|| Self {
            us: us(word),
            handled_us: us(word >> abi::PVSCHED_RESPONSE_LATE_SHIFT),
            count: u16::try_from(word >> abi::PVSCHED_RESPONSE_COUNT_SHIFT).unwrap_or_default(),
        })
    }
}

impl From<&abi::pvsched_page> for Words {
    fn from(page: &abi::pvsched_page) -> Self {
        let applied = page.applied & u64::from(abi::PVSCHED_APPLIED_MASK);
        Self {
            publishing: page.guest_state & u64::from(abi::PVSCHED_GUEST_PUBLISHING) != 0,
            role: Declared::from(page.role).role.name(),
            group: Declared::from(page.role).group,
            current: page.current_task.into(),
            pending: page.pending_task.into(),
            hardirq: byte(page.context, abi::PVSCHED_CONTEXT_HARDIRQ_SHIFT),
            softirq: byte(page.context, abi::PVSCHED_CONTEXT_SOFTIRQ_SHIFT),
            nmi: byte(page.context, abi::PVSCHED_CONTEXT_NMI_SHIFT),
            locked: byte(page.context, abi::PVSCHED_CONTEXT_LOCKED_SHIFT) != 0,
            ack: page.ack,
            timer: Timer::decode(page.timer),
            response: Response::decode(page.response),
            applied: match u32::try_from(applied).unwrap_or(u32::MAX) {
                abi::PVSCHED_APPLIED_NONE => "none",
                abi::PVSCHED_APPLIED_BASELINE => "baseline",
                abi::PVSCHED_APPLIED_BOOST_TASK => "boost-task",
                abi::PVSCHED_APPLIED_BOOST_IRQ => "boost-irq",
                abi::PVSCHED_APPLIED_THROTTLED => "throttled",
                abi::PVSCHED_APPLIED_OBSERVED => "observed",
                _ => "unknown",
            },
            notify: page.applied & u64::from(abi::PVSCHED_APPLIED_NOTIFY) != 0,
            ticket: page.ticket,
            boosts: page.boosts,
            throttles: page.throttles,
        }
    }
}

impl Vcpu {
    /// None for a CPU that this machine cannot have.
    pub fn decode(info: &pvsched_cpu_info) -> Option<Self> {
        let page = match info.state {
            PVSCHED_CPU_ABSENT => return None,
            PVSCHED_CPU_OFFLINE => PageState::Offline,
            PVSCHED_CPU_SET => PageState::Set,
            PVSCHED_CPU_REFUSED => PageState::Refused(info.error),
            _ => PageState::Unset(info.error),
        };
        let with_host = matches!(page, PageState::Set | PageState::Refused(_));
        Some(Self {
            cpu: info.cpu,
            apic_id: with_host.then_some(info.apic_id),
            page,
            words: with_host.then(|| Words::from(&info.page)),
        })
    }
}

/// The negotiated protocol's name.
pub fn protocol_name(info: &pvsched_info) -> String {
    let end = info
        .protocol
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(info.protocol.len());
    String::from_utf8_lossy(&info.protocol[..end]).into_owned()
}

fn answer(info: &pvsched_info, cpus: &[pvsched_cpu_info]) -> (Answer, &'static str) {
    let refused = |cpu: &pvsched_cpu_info| cpu.state == PVSCHED_CPU_REFUSED;
    let has = |flag| info.flags & flag != 0;
    if !has(PVSCHED_INFO_DEVICE) {
        (Answer::NoDevice, missing(info))
    } else if !has(PVSCHED_INFO_NEGOTIATED) || has(PVSCHED_INFO_BROKEN) {
        (Answer::Unusable, missing(info))
    } else if !has(PVSCHED_INFO_PUBLISHER) {
        (
            Answer::NotPublishing,
            "nobody publishes (try: pvsched-guest run)",
        )
    } else if !has(PVSCHED_INFO_ATTACHED) && cpus.iter().any(refused) {
        (
            Answer::HostDetached,
            "the host's scheduler refuses this VM (the codes are those of the handoff socket)",
        )
    } else if !has(PVSCHED_INFO_ATTACHED) {
        (
            Answer::HostDetached,
            "the host has no scheduler that reads it (is scx_pvsched running there?)",
        )
    } else {
        (Answer::Publishing, "the host's scheduler has the pages")
    }
}

impl Status {
    pub fn no_driver() -> Self {
        Self {
            answer: Answer::NoDriver,
            explanation: "the driver is not loaded (try: modprobe virtio_pvsched)".into(),
            protocol: None,
            version: None,
            publisher: false,
            host_attached: false,
            events: 0,
            refusals: 0,
            doorbells: 0,
            vcpus: Vec::new(),
        }
    }

    pub fn decode(info: &pvsched_info, cpus: &[pvsched_cpu_info]) -> Self {
        let (answer, explanation) = answer(info, cpus);
        let negotiated = info.flags & PVSCHED_INFO_NEGOTIATED != 0;
        Self {
            answer,
            explanation: explanation.into(),
            protocol: negotiated.then(|| protocol_name(info)),
            version: negotiated.then_some(info.version),
            publisher: info.flags & PVSCHED_INFO_PUBLISHER != 0,
            host_attached: info.flags & PVSCHED_INFO_ATTACHED != 0,
            events: info.events,
            refusals: info.refusals,
            doorbells: info.doorbells,
            vcpus: cpus.iter().filter_map(Vcpu::decode).collect(),
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self.answer {
            Answer::Publishing => 0,
            Answer::HostDetached => 3,
            Answer::NotPublishing => 4,
            Answer::Unusable => 5,
            Answer::NoDevice => 6,
            Answer::NoDriver => 7,
        }
    }
}

pub fn read() -> Result<Status> {
    let Some(driver) = Driver::open(false)? else {
        return Ok(Status::no_driver());
    };
    let info = driver.info()?;
    Ok(Status::decode(&info, &driver.cpus(&info)?))
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = match self.answer {
            Answer::Publishing => "publishing",
            Answer::HostDetached => "publishing to nobody",
            Answer::NotPublishing => "not publishing",
            Answer::Unusable | Answer::NoDevice => "no usable device",
            Answer::NoDriver => "no driver",
        };
        writeln!(f, "{answer}: {}", self.explanation)?;
        if let (Some(name), Some(version)) = (&self.protocol, self.version) {
            writeln!(
                f,
                "protocol {name} version {version}; {} events, {} refusals, {} notifications",
                self.events, self.refusals, self.doorbells
            )?;
        }
        if !self.vcpus.is_empty() {
            writeln!(
                f,
                "{:>4} {:>5} {:<10} {:<12} {:<12} {:<12} {:<11} {:<6} {:>12} {:>12} {:>9} {:>9} {:<9} \
                 {:>5} {:>10}",
                "CPU",
                "APIC",
                "page",
                "current",
                "pending",
                "irq/soft/nmi/lock",
                "applied",
                "notify",
                "ticket",
                "ack",
                "boosts",
                "throttles",
                "role",
                "group",
                "waited us"
            )?;
        }
        for vcpu in &self.vcpus {
            writeln!(f, "{vcpu}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = match self.page {
            PageState::Offline => "offline".to_string(),
            PageState::Unset(0) => "unset".to_string(),
            PageState::Unset(code) => format!("unset:{code}"),
            PageState::Set => "set".to_string(),
            PageState::Refused(code) => format!("refused:{code}"),
        };
        let apic_id = self.apic_id.map_or("-".to_string(), |id| id.to_string());
        write!(f, "{:>4} {apic_id:>5} {page:<10}", self.cpu)?;
        let Some(words) = &self.words else {
            return Ok(());
        };
        let context = format!(
            "{}/{}/{}/{}",
            words.hardirq,
            words.softirq,
            words.nmi,
            u8::from(words.locked)
        );
        let waited = words
            .response
            .map_or("-".to_string(), |response| response.us.to_string());
        write!(
            f,
            " {:<12} {:<12} {context:<12} {:<11} {:<6} {:>12} {:>12} {:>9} {:>9} {:<9} {:>5} \
             {waited:>10}",
            words.current,
            words.pending,
            words.applied,
            if words.notify { "yes" } else { "no" },
            words.ticket,
            words.ack,
            words.boosts,
            words.throttles,
            words.role,
            words.group
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::uapi::PVSCHED_CPU_UNSET;

    const PAGE: usize = std::mem::size_of::<abi::pvsched_page>();

    /// A page as it lies in memory.
    fn page_from(bytes: [u8; PAGE]) -> abi::pvsched_page {
        // SAFETY: the page is plain integers without padding, and that long.
        unsafe { std::mem::transmute(bytes) }
    }

    fn with_word(bytes: &mut [u8; PAGE], offset: usize, word: u64) {
        bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn info(flags: u32) -> pvsched_info {
        let mut info = pvsched_info {
            flags,
            version: 1,
            ..Default::default()
        };
        info.protocol[..7].copy_from_slice(b"latency");
        info
    }

    #[test]
    fn a_page_is_decoded_from_its_bytes() {
        let mut bytes = [0; PAGE];
        with_word(&mut bytes, 8, 1);
        with_word(&mut bytes, 16, 0x12_34_02);
        with_word(&mut bytes, 64, 0x04_00_14);
        with_word(&mut bytes, 72, 0x05_5a_14);
        with_word(&mut bytes, 80, 0x00_01_02);
        with_word(&mut bytes, 88, 41);
        with_word(&mut bytes, 96, 1 << 48 | 0x05_50 << 32 | 2500);
        with_word(&mut bytes, 104, 3 << 48 | 200 << 24 | 450);
        with_word(&mut bytes, 128, 0x103);
        with_word(&mut bytes, 136, 42);
        with_word(&mut bytes, 144, 7);
        with_word(&mut bytes, 152, 8);
        let words = Words::from(&page_from(bytes));
        assert_eq!(
            words,
            Words {
                publishing: true,
                role: "interrupt",
                group: 0x1234,
                current: Urgency {
                    class: "normal",
                    rt_prio: None,
                    nice: Some(0)
                },
                pending: Urgency {
                    class: "rt",
                    rt_prio: Some(90),
                    nice: None
                },
                hardirq: 2,
                softirq: 1,
                nmi: 0,
                locked: false,
                ack: 41,
                timer: Some(Timer {
                    urgency: Urgency {
                        class: "rt",
                        rt_prio: Some(80),
                        nice: None
                    },
                    delay_us: 2500
                }),
                response: Some(Response {
                    us: 450,
                    handled_us: 200,
                    count: 3
                }),
                applied: "boost-irq",
                notify: true,
                ticket: 42,
                boosts: 7,
                throttles: 8,
            }
        );
    }

    #[test]
    fn an_observed_vcpu_is_shown_as_such() {
        let mut bytes = [0; PAGE];
        with_word(&mut bytes, 128, 5);
        assert_eq!(Words::from(&page_from(bytes)).applied, "observed");
    }

    #[test]
    fn no_protocol_in_common_is_told_from_a_suspended_device() {
        let refused = pvsched_info {
            error: abi::PVSCHED_ERR_NO_PROTOCOL,
            ..info(PVSCHED_INFO_DEVICE)
        };
        let explain = |info| Status::decode(&info, &[]).explanation;
        assert!(explain(refused).contains("no protocol in common"));
        assert!(!explain(info(PVSCHED_INFO_DEVICE)).contains("in common"));
    }

    #[test]
    fn a_page_of_zeros_says_nothing() {
        let words = Words::from(&page_from([0; PAGE]));
        assert_eq!(words.current.to_string(), "-");
        assert_eq!(words.applied, "none");
        assert!(!words.publishing && !words.notify);
    }

    #[test]
    fn each_answer_has_an_exit_code_of_its_own() {
        let ready = PVSCHED_INFO_DEVICE | PVSCHED_INFO_NEGOTIATED;
        let published = ready | PVSCHED_INFO_PUBLISHER;
        let cases = [
            (published | PVSCHED_INFO_ATTACHED, Answer::Publishing, 0),
            (published, Answer::HostDetached, 3),
            (ready | PVSCHED_INFO_ATTACHED, Answer::NotPublishing, 4),
            (PVSCHED_INFO_DEVICE, Answer::Unusable, 5),
            (
                PVSCHED_INFO_DEVICE | PVSCHED_INFO_BROKEN,
                Answer::Unusable,
                5,
            ),
            (0, Answer::NoDevice, 6),
        ];
        for (flags, answer, code) in cases {
            let status = Status::decode(&info(flags), &[]);
            assert_eq!(
                (status.answer, status.exit_code()),
                (answer, code),
                "flags {flags:#x}"
            );
        }
        assert_eq!(Status::no_driver().exit_code(), 7);
    }

    #[test]
    fn the_first_line_is_the_answer_and_each_vcpu_has_one_line() {
        let cpu = |cpu, state| pvsched_cpu_info {
            cpu,
            state,
            ..Default::default()
        };
        let cpus = [
            cpu(0, PVSCHED_CPU_SET),
            cpu(1, PVSCHED_CPU_OFFLINE),
            cpu(2, PVSCHED_CPU_UNSET),
            cpu(3, PVSCHED_CPU_ABSENT),
        ];
        let text = Status::decode(
            &info(PVSCHED_INFO_DEVICE | PVSCHED_INFO_NEGOTIATED | PVSCHED_INFO_PUBLISHER),
            &cpus,
        )
        .to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("publishing to nobody: "));
        assert_eq!(lines.len(), 3 + 3);
    }

    #[test]
    fn a_host_that_refuses_is_not_said_to_have_no_scheduler() {
        let published = PVSCHED_INFO_DEVICE | PVSCHED_INFO_NEGOTIATED | PVSCHED_INFO_PUBLISHER;
        let cpus = [pvsched_cpu_info {
            state: PVSCHED_CPU_REFUSED,
            error: 19,
            ..Default::default()
        }];
        let text = Status::decode(&info(published), &cpus).to_string();
        let answer = "publishing to nobody: the host's scheduler refuses this VM";
        assert!(
            text.starts_with(answer) && text.contains("refused:19"),
            "{text}"
        );
    }

    #[test]
    fn json_names_what_scripts_look_for() {
        let cpus = [pvsched_cpu_info {
            state: PVSCHED_CPU_REFUSED,
            error: 15,
            apic_id: 2,
            ..Default::default()
        }];
        let status = Status::decode(&info(PVSCHED_INFO_DEVICE | PVSCHED_INFO_NEGOTIATED), &cpus);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["answer"], "not-publishing");
        assert_eq!(json["protocol"], "latency");
        assert_eq!(json["vcpus"][0]["page"], "refused");
        assert_eq!(json["vcpus"][0]["code"], 15);
        assert_eq!(json["vcpus"][0]["words"]["current"]["class"], "none");
    }

    proptest! {
        #[test]
        fn no_page_makes_the_decoder_fail(bytes in prop::collection::vec(any::<u8>(), PAGE)) {
            let words = Words::from(&page_from(bytes.try_into().unwrap()));
            let text = format!("{words:?} {} {}", words.current, words.pending);
            prop_assert!(!text.is_empty());
        }
    }
}
