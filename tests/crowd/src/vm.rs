//! One VM: its memory, its vCPUs with their threads, and its connection to the scheduler.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use kvm_bindings::{kvm_mp_state, kvm_msi, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES};
use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::unistd::gettid;
use scx_pvsched::handoff::client::{Client, ClientError};
use scx_pvsched::handoff::{thread as handed, ErrorCode, Protocol, Region, VmName};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::guest;

/// The register that enables a local APIC, and that with its spurious vector.
const APIC_SPURIOUS: usize = 0xf0;
const APIC_ENABLED: [u8; 4] = [0xff, 0x01, 0, 0];

/// The local APICs' place, and bits of its register: the boot processor's, x2APIC, enabled.
const APIC_BASE: u64 = 0xfee0_0000;
const APIC_BOOT: u64 = 1 << 8;
const APIC_X2: u64 = 1 << 10;
const APIC_ON: u64 = 1 << 11;

/// How long a thread may take until KVM has it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Enough for a loop around an ioctl.
const THREAD_STACK: usize = 64 << 10;

/// How often a vCPU may be tried to be entered again without success. Where processors are emulated,
/// KVM gives up now and then on an event that it was about to deliver.
const MOST_FAULTS: u32 = 100;

/// Of all vCPUs.
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// How often KVM gave up entering any vCPU.
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// How long requests to the scheduler took.
pub struct Times {
    pub registered: Duration,
    pub attached: Vec<Duration>,
}

/// A VM whose vCPUs run.
pub struct Vm {
    fd: VmFd,
    memory: GuestMemoryMmap<()>,
    file: File,
    /// Of the vCPUs, in their order.
    threads: Vec<u32>,
    failed: Arc<AtomicBool>,
    /// While it is handed over.
    client: Option<Client>,
}

impl Vm {
    /// Makes it and lets its vCPUs run, up to their first halt.
    pub fn new(kvm: &Kvm, vcpus: u32) -> Result<Self> {
        let fd = kvm.create_vm().context("cannot make a VM")?;
        fd.create_irq_chip().context("cannot make local APICs")?;
        let (file, memory) = memory(vcpus)?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .context("the memory is not mapped")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: guest::MEMORY,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping is as large and lives as long as the VM, which keeps `memory`; vCPU
        // threads that outlive it end with the process.
        unsafe { fd.set_user_memory_region(region) }.context("KVM does not take the memory")?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM does not say what its processors have")?;
        let failed = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..vcpus {
            let vcpu = fd
                .create_vcpu(number.into())
                .with_context(|| format!("cannot make vCPU {number}"))?;
            set_up(&vcpu, number, &cpuid).with_context(|| format!("vCPU {number}"))?;
            let tid = start(vcpu, number, Arc::clone(&failed))?;
            threads.push(tid.recv().context("a vCPU's thread is gone")?);
        }
        Ok(Self {
            fd,
            memory,
            file,
            threads,
            failed,
            client: None,
        })
    }

    /// Hands it over with all its vCPUs.
    pub fn hand_over(&mut self, socket: &Path, name: &str) -> Result<Times> {
        let mut client = Client::connect(socket)?;
        let region = Region::new(0, guest::MEMORY, 0).map_err(anyhow::Error::msg)?;
        let latency = Protocol::latency();
        let start = Instant::now();
        client.register_vm(
            VmName::new(name)?,
            latency.name,
            latency.max_version,
            &[(region, self.file.as_fd())],
        )?;
        let registered = start.elapsed();
        let mut attached = Vec::new();
        for (number, tid) in (0..).zip(&self.threads) {
            let pidfd = handed::open(*tid).context("a vCPU's thread is gone")?;
            let deadline = Instant::now() + PATIENCE;
            attached.push(loop {
                let start = Instant::now();
                match client.attach_vcpu(number, guest::page(number), pidfd.as_fd()) {
                    Ok(()) => break start.elapsed(),
                    // It has not been in KVM yet.
                    Err(ClientError::Refused {
                        code: ErrorCode::NotAVcpu,
                        ..
                    }) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                    Err(error) => return Err(error).with_context(|| format!("vCPU {number}")),
                }
            });
        }
        self.client = Some(client);
        Ok(Times {
            registered,
            attached,
        })
    }

    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    /// Sends one of its vCPUs an interrupt, as a device does.
    pub fn interrupt(&self, vcpu: u32) -> Result<()> {
        let to = u32::try_from(APIC_BASE)? | vcpu << 12;
        let message = kvm_msi {
            address_lo: to,
            data: guest::VECTOR.into(),
            ..kvm_msi::default()
        };
        self.fd
            .signal_msi(message)
            .context("KVM does not take an interrupt")?;
        Ok(())
    }

    /// How many interrupts its vCPUs have taken.
    pub fn taken(&self) -> Result<u64> {
        (0..self.vcpus())
            .map(|vcpu| {
                let (base, _) = guest::stack(vcpu);
                let count: u32 = self.memory.read_obj(GuestAddress(base))?;
                Ok(u64::from(count))
            })
            .sum()
    }

    /// Whether one of its vCPUs has come to an end.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

fn memory(vcpus: u32) -> Result<(File, GuestMemoryMmap<()>)> {
    let file = File::from(memfd_create(c"crowd", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(guest::MEMORY)?;
    let size = usize::try_from(guest::MEMORY)?;
    let range = (
        GuestAddress(0),
        size,
        Some(FileOffset::new(file.try_clone()?, 0)),
    );
    let memory = GuestMemoryMmap::from_ranges_with_files([range])?;
    for (at, bytes) in guest::image(vcpus) {
        memory.write_slice(&bytes, GuestAddress(at))?;
    }
    Ok((file, memory))
}

/// Real mode, with the page as data segment and a stack of its own, and a local APIC that works.
fn set_up(vcpu: &VcpuFd, number: u32, cpuid: &CpuId) -> Result<()> {
    vcpu.set_cpuid2(cpuid)?;
    let mut registers = vcpu.get_sregs()?;
    registers.cs.base = 0;
    registers.cs.selector = 0;
    let (stack, size) = guest::stack(number);
    for (segment, base) in [
        (&mut registers.ds, guest::page(number)),
        (&mut registers.ss, stack),
    ] {
        segment.base = base;
        segment.selector = u16::try_from(base >> 4)?;
    }
    let boot = if number == 0 { APIC_BOOT } else { 0 };
    registers.apic_base = APIC_BASE | APIC_ON | APIC_X2 | boot;
    vcpu.set_sregs(&registers)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = guest::CODE;
    registers.rsp = size;
    // Bit 1 is always set.
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    let mut apic = vcpu.get_lapic()?;
    for (register, byte) in apic.regs[APIC_SPURIOUS..].iter_mut().zip(APIC_ENABLED) {
        *register = std::ffi::c_char::from_ne_bytes([byte]);
    }
    vcpu.set_lapic(&apic)?;
    // All but the first would wait to be started by it.
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    Ok(())
}

/// Lets a vCPU run in a thread of its own; gives where that thread's id comes from.
fn start(mut vcpu: VcpuFd, number: u32, failed: Arc<AtomicBool>) -> Result<Receiver<u32>> {
    let (sender, tid) = channel();
    thread::Builder::new()
        .name(format!("CPU {number}/KVM"))
        .stack_size(THREAD_STACK)
        .spawn(move || {
            // Positive, as the kernel's ids are; and somebody waits for it.
            let _ = sender.send(u32::try_from(gettid().as_raw()).unwrap_or_default());
            if let Err(error) = run(&mut vcpu) {
                eprintln!("pvsched-crowd: vCPU {number}: {error:#}");
                failed.store(true, Ordering::Relaxed);
            }
        })?;
    Ok(tid)
}

/// Until the process ends.
fn run(vcpu: &mut VcpuFd) -> Result<()> {
    let mut faults = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::InternalError) if faults < MOST_FAULTS => {
                faults += 1;
                FAULTS.fetch_add(1, Ordering::Relaxed);
            }
            Ok(exit) => bail!("it left guest mode for good: {exit:?}"),
            Err(error) if error.errno() == Errno::EINTR as i32 => {}
            Err(error) if error.errno() == Errno::EAGAIN as i32 => {}
            Err(error) => return Err(error).context("KVM does not run it"),
        }
    }
}
