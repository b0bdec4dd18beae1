// SPDX-License-Identifier: GPL-2.0-only
//! vCPUs and their threads.

use super::*;

#[test]
fn pages_apic_ids_and_threads_are_not_used_twice() {
    let host = Host::start();
    let (mut vm, mut other) = (host.vm(), host.vm());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    vm.attach_vcpu(0, 0, a.pidfd().as_fd()).unwrap();
    host.refuses(ErrorCode::PageInUse, || {
        vm.attach_vcpu(1, 0, b.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || {
        vm.attach_vcpu(0, PAGE_SIZE, b.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || {
        vm.attach_vcpu(0, 0, a.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || vm.detach_vcpu(1));
    host.refuses(ErrorCode::ThreadInUse, || {
        vm.attach_vcpu(1, PAGE_SIZE, a.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ThreadInUse, || {
        other.attach_vcpu(0, 0, a.pidfd().as_fd())
    });
    other.attach_vcpu(0, 0, b.pidfd().as_fd()).unwrap();
}

#[test]
fn what_is_no_live_thread_is_refused() {
    let host = Host::start();
    let mut vm = host.vm();
    let file = memory();
    host.refuses(ErrorCode::NotAThread, || vm.attach_vcpu(0, 0, file.as_fd()));
    let vcpu = Vcpu::start();
    let pidfd = vcpu.pidfd();
    drop(vcpu);
    eventually(|| thread::has_exited(pidfd.as_fd()));
    host.refuses(ErrorCode::NotAThread, || {
        vm.attach_vcpu(0, 0, pidfd.as_fd())
    });
}

#[test]
fn only_root_and_its_own_user_hand_over_a_thread() {
    if !is_root() {
        return;
    }
    let host = Host::start();
    let (theirs, roots) = (Vcpu::of_user(NOBODY), Vcpu::start());
    let (theirs_fd, roots_fd) = (theirs.pidfd(), roots.pidfd());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_user(NOBODY);
            let mut vm = host.vm();
            host.refuses(ErrorCode::Permission, || {
                vm.attach_vcpu(0, 0, roots_fd.as_fd())
            });
            vm.attach_vcpu(0, 0, theirs_fd.as_fd()).unwrap();
        });
    });
    let mut vm = host.vm();
    eventually(|| host.attached() == 0);
    vm.attach_vcpu(0, 0, theirs_fd.as_fd()).unwrap();
}

#[test]
fn a_thread_that_is_no_vcpu_is_refused_until_it_is_one() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    host.set_vcpu(vcpu.tid, false);
    host.refuses(ErrorCode::NotAVcpu, || {
        vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd())
    });
    host.set_vcpu(vcpu.tid, true);
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
}

#[test]
fn what_the_scheduler_cannot_do_is_refused_by_its_reason() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    for (error, code) in [
        (RegistryError::Pin("no memory".into()), ErrorCode::Pin),
        (RegistryError::NoThread, ErrorCode::NotAThread),
        (
            RegistryError::Internal("no map".into()),
            ErrorCode::Internal,
        ),
    ] {
        host.fail_next(error);
        host.refuses(code, || vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()));
    }
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
}

#[test]
fn a_vcpu_whose_thread_exits_is_detached_and_the_vmm_told() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(3, 0, vcpu.pidfd().as_fd()).unwrap();
    drop(vcpu);
    eventually(|| host.attached() == 0);
    let mut notice = None;
    let since = Instant::now();
    while notice.is_none() && since.elapsed() < Duration::from_secs(5) {
        notice = vm.notice().unwrap();
    }
    assert_eq!(notice, Some(Notice::VcpuGone { apic_id: 3 }));
    vm.attach_vcpu(3, 0, Vcpu::start().pidfd().as_fd()).unwrap();
}

#[test]
fn a_replaced_vcpu_can_be_attached_before_the_exit_of_the_old_one_is_noticed() {
    let host = Host::start();
    let mut vm = host.vm();
    for _ in 0..200 {
        let vcpu = Vcpu::start();
        let pidfd = vcpu.pidfd();
        vm.attach_vcpu(0, 0, pidfd.as_fd()).unwrap();
        drop(vcpu);
        eventually(|| thread::has_exited(pidfd.as_fd()));
    }
}
