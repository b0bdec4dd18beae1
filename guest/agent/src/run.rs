// SPDX-License-Identifier: GPL-2.0-only
//! `pvsched-guest run`: publishes for as long as there is a device, and waits for one otherwise.
//!
//! While it waits it keeps nothing open, so the driver can be unloaded and loaded. While it
//! publishes, the kernel says that the driver is in use.
//!
//! A CPU's words are complete from its first task switch or interrupt on. A busy CPU has a timer
//! interrupt within one tick, and an idle one has nothing to say until something comes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use libbpf_rs::{set_print, PrintLevel};
use scx_pvsched::abi;

use crate::driver::{Claim, Driver, NODE};
use crate::program;
use crate::roles;
use crate::status::protocol_name;
use crate::uapi::{
    pvsched_info, PVSCHED_INFO_BROKEN, PVSCHED_INFO_DEVICE, PVSCHED_INFO_MINE,
    PVSCHED_INFO_NEGOTIATED,
};

/// How often to look for a driver and a device.
const LOOK: Duration = Duration::from_millis(500);

const MODULE_USERS: &str = "/sys/module/virtio_pvsched/refcnt";
const RELEASE_LOOKS: u32 = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

/// `config` names the roles to declare whenever there is a device.
pub fn run(config: &Path) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;
    // What the kernel's verifier says is the only trace of why it refused a program.
    set_print(Some((PrintLevel::Warn, |_, text| eprint!("{text}"))));

    let mut said = None;
    while !stop.load(Ordering::Relaxed) {
        match look()? {
            Found::Device(driver, info) => {
                said = None;
                declare(&driver, config);
                publish(driver, &info, &stop)?;
                wait_for_release();
            }
            Found::Nothing(why) => {
                if said != Some(why) {
                    say(&format!("waiting: {why}"));
                    said = Some(why);
                }
                thread::sleep(LOOK);
            }
        }
    }
    Ok(())
}

/// The words are worth publishing without the roles, too.
fn declare(driver: &Driver, config: &Path) {
    match roles::apply(driver, config) {
        Ok(0) => {}
        Ok(count) => say(&format!(
            "roles: {count} CPUs, as {} says",
            config.display()
        )),
        Err(error) => eprintln!("pvsched-guest: no roles declared: {error:#}"),
    }
}

enum Found {
    Device(Driver, pvsched_info),
    Nothing(&'static str),
}

fn look() -> Result<Found> {
    let Some(driver) = Driver::open(true)? else {
        return Ok(Found::Nothing(
            "the driver is not loaded (try: modprobe virtio_pvsched)",
        ));
    };
    let info = driver.info()?;
    Ok(if info.flags & PVSCHED_INFO_NEGOTIATED != 0 {
        Found::Device(driver, info)
    } else {
        Found::Nothing(missing(&info))
    })
}

/// Publishing goes on when nobody listens (any more).
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Why nothing can be published.
pub fn missing(info: &pvsched_info) -> &'static str {
    if info.flags & PVSCHED_INFO_DEVICE == 0 {
        "this machine has no pvsched device (add one to the VM; if its virtio id is not 39, load \
         virtio_pvsched with device_id=ID)"
    } else if info.flags & PVSCHED_INFO_BROKEN != 0 {
        "the device stopped answering (see dmesg; when it is back, reload virtio_pvsched)"
    } else if info.error == abi::PVSCHED_ERR_NO_PROTOCOL {
        "driver and device have no protocol in common (dmesg says what the device offers, which its \
         option --protocol decides; the driver offers all that it knows, or what its parameter \
         protocol says)"
    } else {
        "the device is suspended, or refused to negotiate (see dmesg)"
    }
}

/// Returns when the device goes or the agent shall stop.
fn publish(driver: Driver, info: &pvsched_info, stop: &AtomicBool) -> Result<()> {
    let name = protocol_name(info);
    let Some(protocol) = program::find(&name, info.version) else {
        bail!(
            "driver and device speak {name} version {}, this agent does not: update it",
            info.version
        );
    };
    // First the program, so that no page claims to be kept current before one runs.
    let attached = protocol.attach()?;
    match driver.claim()? {
        Claim::Granted => (),
        Claim::NoDevice => return Ok(()),
    }
    say(&format!(
        "publishing: {} version {}",
        protocol.name, protocol.version
    ));
    while !stop.load(Ordering::Relaxed) {
        let info = driver.info()?;
        if info.flags & PVSCHED_INFO_MINE == 0 {
            say(&format!("stopped: the device behind {NODE} is gone"));
            break;
        }
        // A signal does not always end the wait: ctrlc's own thread may have taken it.
        driver.wait(LOOK)?;
    }
    // In this order: the programs go one by one, and half of them count entries without exits.
    drop(driver);
    drop(attached);
    Ok(())
}

/// The kernel frees programs some time after they are let go, and only then does it let the driver
/// go. Whoever stops the agent to unload the driver should not have to know, so wait a little.
fn wait_for_release() {
    for _ in 0..RELEASE_LOOKS {
        match fs::read_to_string(MODULE_USERS) {
            Ok(users) if users.trim() != "0" => thread::sleep(RELEASE_PAUSE),
            _ => break,
        }
    }
}
