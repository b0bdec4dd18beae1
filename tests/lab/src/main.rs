//! `pvsched-lab`: the lab's command line, on the machine and inside its VMs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nix::time::{clock_gettime, ClockId};

use pvsched_lab::accel::Accel;
use pvsched_lab::bench;
use pvsched_lab::cache::Cache;
use pvsched_lab::channel::Event;
use pvsched_lab::checkout::Checkout;
use pvsched_lab::demo;
use pvsched_lab::guest::Guest;
use pvsched_lab::here;
use pvsched_lab::host_args::{HostArgs, MachineArgs};
use pvsched_lab::host_vm::{self, console_tail, End, Setup};
use pvsched_lab::kernels::{Kernel, Offer};
use pvsched_lab::matrix::{self, Table};
use pvsched_lab::prepare::{offered, prepare, sweep};
use pvsched_lab::published::{Published, LOADER, OTHER_SCHEDULER};
use pvsched_lab::root::Root;
use pvsched_lab::survey::Findings;
use pvsched_lab::{agent, module, promises, steady};

/// The lab itself failed; the command's own statuses pass through.
const LAB_FAILED: u8 = 125;
const TIMED_OUT: u8 = 124;

/// Boots a host VM with sched_ext and KVM, and guests inside it, on a machine that has neither.
///
/// Exit status: the command's own; 124 if it ran out of time; 125 if the lab failed.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make what is missing in the cache: the Debian root and the kernels
    Prepare {
        /// A kernel series that guests are to have beside the usual ones; may be given several times
        #[arg(long, value_name = "SERIES")]
        kernel: Vec<Kernel>,
        /// Look for newer kernels too
        #[arg(long)]
        refresh: bool,
    },
    /// Run a command in a fresh host VM; a single word is a shell's command line
    Run {
        #[command(flatten)]
        host: HostArgs,
        /// Seconds the command may take
        #[arg(long, default_value_t = 600, value_name = "S")]
        timeout: u64,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Open a shell in a fresh host VM
    Shell {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Run the end-to-end tests in host VMs, each by itself, again if it fails
    Promises {
        #[command(flatten)]
        host: HostArgs,
        /// Only tests with this in their name; may be given several times
        #[arg(long, value_name = "FILTER")]
        only: Vec<String>,
        /// How often a test is tried at most
        #[arg(long, default_value_t = promises::TRIES, value_name = "N",
              value_parser = clap::value_parser!(u32).range(1..=10))]
        tries: u32,
        /// The tests' binary
        binary: PathBuf,
    },
    /// Mix everything at random under scx_pvsched in a fresh host VM, and watch that it stays steady
    Steady(SteadyArgs),
    /// Try scx_pvsched on the newest kernel of each series, and print a table
    Matrix(MatrixArgs),
    /// Build the guest driver for the kernels that have headers
    Module,
    /// Build the scx project's loader with scx_pvsched among its schedulers; needs no root
    Loader {
        /// Cargo's profile: dev, or release for use outside of the lab
        #[arg(long, default_value = "dev", value_name = "NAME")]
        profile: String,
    },
    /// Build a published scheduler that the loader knows too, for the tests that switch
    OtherScheduler,
    /// Inside the host VM: boot a guest and run a command in it
    Guest(GuestArgs),
    /// Compare the kernel's scheduler and scx_pvsched side by side
    Demo(DemoArgs),
    /// Compare what ordinary work gets from several schedulers, side by side
    Bench(BenchArgs),
    /// Inside the host VM: find out what its kernel can do with scx_pvsched
    #[command(hide = true)]
    Survey,
    /// Inside a VM: serve the lab's port
    #[command(hide = true)]
    Agent {
        /// Seconds between signs of life
        #[arg(long, value_name = "S")]
        heartbeat: Option<u64>,
    },
    /// Inside a VM: give back what is read
    #[command(hide = true)]
    Echo,
    /// Inside a guest: work in each period as a real-time task, and tell how many were missed
    #[command(hide = true)]
    Periods {
        /// Of sound at 48 kHz, in each period
        frames: bench::audio::Frames,
        /// Milliseconds
        duration: u64,
    },
    /// Inside a guest: be busy, and tell how much work was done per second
    #[command(hide = true)]
    Spare {
        /// Milliseconds
        duration: u64,
    },
    /// Inside a guest: a byte to and fro between two processes; tells how often per second
    #[command(hide = true)]
    RoundTrips {
        /// Milliseconds
        duration: u64,
    },
    /// Make the page of a report anew
    BenchPage {
        /// The report
        #[arg(default_value = "target/bench/report.json")]
        report: PathBuf,
    },
    /// Inside a guest: memory barriers between busy threads; tells how many per second
    #[command(hide = true)]
    Barriers {
        /// CPUs, from the first on
        cpus: usize,
        /// Milliseconds
        duration: u64,
    },
    /// Inside a guest: a real-time task of CPU 1 that one of CPU 0 wakes; tells in microseconds how late half
    /// of its wake-ups and nine in ten are at most, and how many there were
    #[command(hide = true)]
    Wakes {
        /// Milliseconds
        duration: u64,
    },
    /// Inside a VM: be busy and sleep by turns
    #[command(hide = true)]
    Burn {
        /// Milliseconds busy
        busy: u64,
        /// Milliseconds asleep
        idle: u64,
    },
}

#[derive(Args)]
struct GuestArgs {
    /// Name, for messages and QEMU
    #[arg(long, default_value = "guest")]
    name: String,
    /// Kernel: a series that has been prepared, such as 6.12, or newest
    #[arg(long, default_value_t = Kernel::Newest, value_name = "SERIES")]
    kernel: Kernel,
    /// vCPUs, or all that QEMU's -smp takes
    #[arg(long, default_value = "2", value_name = "SMP")]
    smp: String,
    /// Memory in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    memory: u32,
    /// Socket of a vhost-user back-end to attach
    #[arg(long, value_name = "SOCKET")]
    device: Option<PathBuf>,
    /// Socket for QEMU to serve QMP on
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// Load the guest driver
    #[arg(long)]
    driver: bool,
    /// A single word is a shell's command line
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct DemoArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    options: demo::Options,
    /// Use this machine's kernel instead of a host VM; it needs sched_ext and KVM
    #[arg(long)]
    here: bool,
    /// What runs inside the host VM; the report goes to --out
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Args)]
struct BenchArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    options: bench::Options,
    /// Use this machine's kernel instead of a host VM; it needs sched_ext and KVM
    #[arg(long)]
    here: bool,
    /// What runs inside the host VM; the report goes to --out
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Args)]
struct SteadyArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    options: steady::Options,
    /// What runs inside the host VM
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Args)]
struct MatrixArgs {
    /// Only this series; may be given several times [default: all that the mirror has from 6.16 on]
    #[arg(long, value_name = "SERIES")]
    only: Vec<Kernel>,
    #[command(flatten)]
    machine: MachineArgs,
}

fn main() -> ExitCode {
    match act(Cli::parse().action) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn act(action: Action) -> Result<u8> {
    match action {
        Action::Prepare { kernel, refresh } => {
            prepare(&Cache::open()?, &kernel, refresh)?;
        }
        Action::Run {
            host,
            timeout,
            command,
        } => {
            return run(host, Duration::from_secs(timeout), &command);
        }
        Action::Shell { host } => {
            let (cache, checkout) = (Cache::open()?, Checkout::find()?);
            let _lock = prepare(&cache, &[host.kernel], false)?;
            let options = host.settled(&cache, &checkout)?;
            Setup::new(&cache, &checkout, &options)?.shell()?;
        }
        Action::Module => {
            let (cache, checkout) = (Cache::open()?, Checkout::find()?);
            let _lock = prepare(&cache, &[], false)?;
            for module in module::build(&cache, &checkout)? {
                println!("{}", module.display());
            }
        }
        Action::Loader { profile } => build(&LOADER, &profile)?,
        Action::OtherScheduler => build(&OTHER_SCHEDULER, "dev")?,
        Action::Promises {
            host,
            only,
            tries,
            binary,
        } => return test(host, &binary, &only, tries),
        Action::Guest(args) => return guest(args),
        Action::Demo(args) => return demonstrate(args),
        Action::Bench(args) => return benchmark(args),
        Action::Echo => bench::echo::serve()?,
        Action::Periods { frames, duration } => {
            bench::audio::serve(frames, Duration::from_millis(duration))?;
        }
        Action::Spare { duration } => bench::needs::serve(Duration::from_millis(duration))?,
        Action::RoundTrips { duration } => {
            println!("{}", bench::echo::rate(Duration::from_millis(duration))?);
        }
        Action::BenchPage { report } => {
            let root = Root::new(&Cache::open()?);
            println!(
                "page: {}",
                bench::page::write(&report, root.path())?.display()
            );
        }
        Action::Steady(args) => return mix(args),
        Action::Matrix(args) => return tabulate(args),
        Action::Survey => matrix::print(&Findings::make())?,
        Action::Barriers { cpus, duration } => {
            let duration = Duration::from_millis(duration);
            println!("{}", pvsched_lab::barriers::rate(cpus, duration)?);
        }
        Action::Wakes { duration } => {
            let times = pvsched_lab::wakes::measure(0, 1, Duration::from_millis(duration))?;
            println!("{} {} {}", times.p50(), times.p90(), times.samples());
        }
        Action::Burn { busy, idle } => {
            burn(Duration::from_millis(busy), Duration::from_millis(idle))
        }
        Action::Agent { heartbeat } => agent::serve(heartbeat.map(Duration::from_secs))?,
    }
    Ok(0)
}

fn build(program: &Published, profile: &str) -> Result<()> {
    let built = program.build(&Checkout::find()?, profile)?;
    println!("{}", built.display());
    Ok(())
}

/// Until killed. Counted in the thread's own time, so that it is as long however often the CPU is
/// taken away.
fn burn(busy: Duration, idle: Duration) -> ! {
    let used =
        || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into);
    loop {
        let end = used() + busy;
        while used() < end {}
        std::thread::sleep(idle);
    }
}

/// The words to run: one word is for a shell.
fn words(command: &[String]) -> Vec<&str> {
    match command {
        [line] => vec!["/bin/sh", "-c", line],
        words => words.iter().map(String::as_str).collect(),
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

fn clamp(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(LAB_FAILED)
}

fn run(host: HostArgs, timeout: Duration, command: &[String]) -> Result<u8> {
    let (cache, checkout) = (Cache::open()?, Checkout::find()?);
    sweep(&cache)?;
    let _lock = prepare(&cache, &[host.kernel], false)?;
    let options = host.settled(&cache, &checkout)?;
    let setup = Setup::new(&cache, &checkout, &options)?;
    let start = Instant::now();
    let mut vm = setup.boot()?;
    eprintln!(
        "lab: {} up in {:.1} s",
        vm.release(),
        start.elapsed().as_secs_f64()
    );
    let end = vm.run(&words(command), timeout, print)?;
    let console = setup.keep_console()?;
    let (what, status) = match end {
        End::Exit(status) => {
            vm.end()?;
            return Ok(clamp(status));
        }
        End::Timeout => (
            format!("the command was not done after {timeout:?}"),
            TIMED_OUT,
        ),
        End::Hang => ("the host VM hung or stopped".to_owned(), LAB_FAILED),
    };
    eprintln!("lab: {what}; the console ({}) ends so:", console.display());
    eprintln!("{}", console_tail(&console));
    Ok(status)
}

fn test(host: HostArgs, binary: &Path, only: &[String], tries: u32) -> Result<u8> {
    let (cache, checkout) = (Cache::open()?, Checkout::find()?);
    let names = promises::list(binary, only)?;
    sweep(&cache)?;
    let _lock = prepare(&cache, &[host.kernel], false)?;
    let options = host.settled(&cache, &checkout)?;
    let file = binary.file_name().context("the binary has no name")?;
    // The host VM has the target folder at /usr/local/bin.
    let inside = Path::new("/usr/local/bin/deps").join(file);
    // Those without a wish come first, on the host VM asked for.
    let mut by_wish = BTreeMap::<_, Vec<_>>::new();
    for name in names {
        let wish = (promises::counted(&name), promises::topology(&name));
        by_wish.entry(wish).or_default().push(name);
    }
    let mut failed = 0;
    for ((counted, topology), names) in by_wish {
        let options = host_vm::Options {
            topology: topology.unwrap_or(options.topology),
            accel: if counted {
                Accel::Icount
            } else {
                options.accel
            },
            ..options.clone()
        };
        let setup = Setup::new(&cache, &checkout, &options)?;
        let counts = promises::run(&setup, &inside.display().to_string(), &names, tries)?;
        setup.keep_console()?;
        failed += counts.failed;
    }
    Ok(u8::from(failed != 0))
}

fn guest(args: GuestArgs) -> Result<u8> {
    let mut builder = Guest::builder()
        .name(args.name)
        .kernel(args.kernel)
        .smp(args.smp)
        .memory_mib(args.memory)
        .driver(args.driver);
    if let Some(socket) = args.device {
        builder = builder.device(socket);
    }
    if let Some(socket) = args.qmp {
        builder = builder.qmp(socket);
    }
    let start = Instant::now();
    let guest = builder.boot()?;
    eprintln!(
        "lab: guest {} up in {:.1} s",
        guest.release(),
        start.elapsed().as_secs_f64()
    );
    let job = guest.spawn_merged(&words(&args.command))?;
    loop {
        match job.next(Duration::from_secs(60)) {
            Event::Stdout(bytes) | Event::Stderr(bytes) => print(&bytes)?,
            Event::Exit(status) => return Ok(clamp(status)),
            Event::Gone => anyhow::bail!("the guest stopped; console:\n{}", guest.console()),
            Event::Silence => {}
        }
    }
}

/// The time that a demonstration or a benchmark may take beyond its own estimate: booting a guest on a
/// busy machine, loading the scheduler once for each round, and several times that where it is slow.
const MARGIN: Duration = Duration::from_secs(600);

fn demonstrate(args: DemoArgs) -> Result<u8> {
    let DemoArgs {
        mut host,
        options,
        here,
        inside,
    } = args;
    if inside {
        let out = host.machine.out.unwrap_or_else(|| PathBuf::from("/out"));
        demo::measure(&options, &out)?;
        return Ok(0);
    }
    let checkout = Checkout::find()?;
    let out = host
        .machine
        .out
        .get_or_insert_with(|| checkout.path.join("target/demo"))
        .clone();
    let mut command = ["pvsched-lab", "demo", "--inside"]
        .map(str::to_owned)
        .to_vec();
    command.extend(options.arguments());
    let status = if here {
        here::check()?;
        let cache = Cache::open()?;
        sweep(&cache)?;
        let _lock = prepare(&cache, &[options.guest_kernel], false)?;
        let host = host.options(&checkout)?;
        let setup = Setup::new(&cache, &checkout, &host)?;
        let status = here::command(&setup, &command).status()?;
        clamp(agent::exit_code(status))
    } else {
        // It is there by the time that the host VM is to boot it.
        drop(prepare(&Cache::open()?, &[options.guest_kernel], false)?);
        run(host, 3 * options.estimate() + MARGIN, &command)?
    };
    if status == 0 {
        let report = out.join("report.json");
        demo::add_machine(&report)?;
        println!("report: {}", report.display());
    }
    Ok(status)
}

fn mix(args: SteadyArgs) -> Result<u8> {
    let SteadyArgs {
        host,
        options,
        inside,
    } = args;
    if inside {
        println!("{}", steady::run(&options)?);
        return Ok(0);
    }
    eprintln!("lab: seed {}", options.seed);
    let mut command = ["pvsched-lab", "steady", "--inside"]
        .map(str::to_owned)
        .to_vec();
    command.extend(options.arguments());
    run(host, options.limit(), &command)
}

fn tabulate(args: MatrixArgs) -> Result<u8> {
    let MatrixArgs { only, machine } = args;
    let (cache, checkout) = (Cache::open()?, Checkout::find()?);
    sweep(&cache)?;
    let offer = if only.is_empty() {
        offered(&cache, Kernel::V6_16)?
    } else {
        Offer {
            whole: only,
            ..Offer::default()
        }
    };
    let kernels = offer.whole;
    // The newest of each, also where an older one is there.
    drop(prepare(&cache, &kernels, true)?);
    let _lock = prepare(&cache, &kernels, false)?;
    // Of no account: each row has its own.
    let kernel = Kernel::V6_18;
    let options = HostArgs { kernel, machine }.settled(&cache, &checkout)?;
    let table = Table::make(&cache, &checkout, &options, &kernels)?;
    print!("{table}");
    for kernel in offer.in_parts {
        println!("{kernel}: the mirror has no modules of it, without which no host VM boots");
    }
    Ok(u8::from(!table.is_good()))
}

fn benchmark(args: BenchArgs) -> Result<u8> {
    let BenchArgs {
        mut host,
        options,
        here,
        inside,
    } = args;
    if inside {
        let out = host.machine.out.unwrap_or_else(|| PathBuf::from("/out"));
        bench::run(&options, &out)?;
        return Ok(0);
    }
    let (cache, checkout) = (Cache::open()?, Checkout::find()?);
    let estimate = options.estimate()? * host.machine.accel.patience();
    for peer in options.peers()? {
        peer.build(&checkout)?;
    }
    let out = host
        .machine
        .out
        .get_or_insert_with(|| checkout.path.join("target/bench"))
        .clone();
    let report = out.join("report.json");
    // What is told afterwards shall be of this run.
    if report.exists() && !options.resume {
        std::fs::remove_file(&report)?;
    }
    let mut command = ["pvsched-lab", "bench", "--inside"]
        .map(str::to_owned)
        .to_vec();
    command.extend(options.arguments());
    eprintln!(
        "bench: about {} minutes",
        estimate.as_secs().div_ceil(60).max(1)
    );
    let watch = bench::machine::Watch::start()?;
    let status = if here {
        here::check()?;
        sweep(&cache)?;
        let _lock = prepare(&cache, &[options.guest_kernel], false)?;
        let host = host.options(&checkout)?;
        let setup = Setup::new(&cache, &checkout, &host)?;
        clamp(agent::exit_code(here::command(&setup, &command).status()?))
    } else {
        // It is there by the time that the host VM is to boot it.
        drop(prepare(&cache, &[options.guest_kernel], false)?);
        run(host, 3 * estimate + MARGIN, &command)?
    };
    // Also of a run that did not come to its end.
    if report.exists() {
        demo::add_machine(&report)?;
        watch.add_others(&report)?;
        println!("report: {}", report.display());
        let root = Root::new(&cache);
        println!(
            "page: {}",
            bench::page::write(&report, root.path())?.display()
        );
    }
    Ok(status)
}
