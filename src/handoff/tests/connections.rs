// SPDX-License-Identifier: GPL-2.0-only
//! Connections and the VMs behind them: from the first to the last, and how many.

use super::*;

#[test]
fn a_vm_hands_over_its_vcpus_and_takes_them_back() {
    let host = Host::start();
    let mut vm = host.vm();
    assert_eq!(vm.welcome().protocols, Protocol::all());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    vm.attach_vcpu(0, 5 * PAGE_SIZE, a.pidfd().as_fd()).unwrap();
    vm.attach_vcpu(7, HIGH + 9 * PAGE_SIZE, b.pidfd().as_fd())
        .unwrap();
    let (_, attached) = host.state();
    let seen: Vec<_> = attached
        .iter()
        .map(|((_, id), vcpu)| (*id, *vcpu))
        .collect();
    assert_eq!(seen, [(0, (a.tid, 5)), (7, (b.tid, 1009))]);
    vm.detach_vcpu(0).unwrap();
    assert_eq!(host.attached(), 1);
    vm.attach_vcpu(0, 5 * PAGE_SIZE, a.pidfd().as_fd()).unwrap();
    drop(vm);
    eventually(|| host.state().0.is_empty() && host.attached() == 0);
}

#[test]
fn a_vm_is_told_that_its_protocol_is_not_allowed_to_it() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
    host.set_barred(true);
    eventually(|| host.state() == Default::default());
    assert!(matches!(vm.notice(), Err(ClientError::Closed)));

    let memory = memory();
    let mut again = host.client();
    let mut register =
        || again.register_vm(name(), ProtocolName::LATENCY, 1, &guest(memory.as_fd()));
    host.refuses(ErrorCode::NotAllowed, &mut register);
    host.set_barred(false);
    register().unwrap();
}

#[test]
fn a_vm_that_has_left_is_gone_from_the_scheduler() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
    vm.leave().unwrap();
    assert_eq!(host.state(), Default::default());
}

#[test]
fn more_vcpus_vms_and_connections_than_allowed_are_refused() {
    let host = Host::with(Limits {
        vms: 2,
        vcpus: 1,
        ..Limits::default()
    });
    let (mut first, _second) = (host.vm(), host.vm());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    first.attach_vcpu(0, 0, a.pidfd().as_fd()).unwrap();
    host.refuses(ErrorCode::TooMany, || {
        first.attach_vcpu(1, PAGE_SIZE, b.pidfd().as_fd())
    });
    let mut third = host.client();
    let memory = memory();
    host.refuses(ErrorCode::TooMany, || {
        third.register_vm(name(), ProtocolName::LATENCY, 1, &guest(memory.as_fd()))
    });
    let _fourth = host.client();
    host.refuses(ErrorCode::TooMany, || Client::connect(&host.path).map(drop));
}

#[test]
fn one_user_cannot_take_all_connections() {
    if !is_root() {
        return;
    }
    let host = Host::with(Limits {
        connections_per_user: 3,
        ..Limits::default()
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_user(NOBODY);
            let _held: Vec<Client> = (0..3).map(|_| host.client()).collect();
            host.refuses(ErrorCode::TooMany, || Client::connect(&host.path).map(drop));
        });
    });
    host.vm();
}

#[test]
fn a_scheduler_that_stops_says_so_and_leaves_nothing() {
    let mut host = Host::start();
    let mut vm = host.vm();
    vm.attach_vcpu(0, 0, Vcpu::start().pidfd().as_fd()).unwrap();
    let mut vm = host.vm();
    host.stop();
    assert_eq!(vm.notice().unwrap(), Some(Notice::Stopping));
    assert!(matches!(vm.notice(), Err(ClientError::Closed)));
    assert_eq!(host.state(), Default::default());
    assert!(!host.path.exists());
    assert!(matches!(
        Client::connect(&host.path),
        Err(ClientError::Unreachable(_))
    ));
}

#[test]
fn a_connection_that_registers_nothing_is_closed_in_time() {
    let host = Host::with(Limits {
        registration: Duration::from_millis(100),
        ..Limits::default()
    });
    let (silent, greeted, vm) = (host.peer(), host.peer().greeted(), host.vm());
    assert!(silent.closed() && greeted.closed());
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(host.state().0.len(), 1);
    drop(vm);
}

#[test]
fn a_peer_that_does_not_read_is_dropped_and_blocks_nobody() {
    let host = Host::start();
    let peer = host.peer().greeted();
    peer.say(&register_bytes(&[]), &[memory().as_fd()]).unwrap();
    let detach = Request::VcpuDetach { apic_id: 0 }.encode(1);
    let flood = std::thread::spawn(move || while send(peer.0.as_fd(), &detach, &[]).is_ok() {});
    let mut vm = host.vm();
    vm.attach_vcpu(0, 0, Vcpu::start().pidfd().as_fd()).unwrap();
    flood.join().unwrap();
    eventually(|| host.state().0.len() == 1);
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handoff.sock");
    let bind = |path: &Path| Server::bind(path, config(Limits::default()));
    // What a killed scheduler leaves: a socket file that nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(ServerError::InUse(_))));
    drop(server);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(ServerError::NotASocket(_))));
    assert!(path.exists());
}

#[test]
fn sixty_four_vms_with_eight_vcpus_each_come_and_go() {
    let host = Host::start();
    let vms: Vec<_> = (0..64)
        .map(|_| {
            let mut vm = host.vm();
            let vcpus: Vec<Vcpu> = (0..8).map(|_| Vcpu::start()).collect();
            for (id, vcpu) in (0u32..).zip(&vcpus) {
                let gpa = u64::from(id) * PAGE_SIZE;
                vm.attach_vcpu(id, gpa, vcpu.pidfd().as_fd()).unwrap();
            }
            (vm, vcpus)
        })
        .collect();
    assert_eq!((host.state().0.len(), host.attached()), (64, 512));
    let (clients, threads): (Vec<Client>, Vec<_>) = vms.into_iter().unzip();
    drop(clients);
    eventually(|| host.state().0.is_empty() && host.attached() == 0);
    drop(threads);
}
