// SPDX-License-Identifier: GPL-2.0-only
//! The memory of a VM and the pages in it.

use super::*;

#[test]
fn memory_that_cannot_be_shared_is_refused() {
    let host = Host::start();
    let peer = host.peer().greeted();
    let file = memory();
    let fd = file.as_fd();
    let number = |value: u64| value.to_le_bytes();
    for (at, value) in [
        (104, 1),
        (112, 0),
        (112, 100),
        (120, 8),
        (104, u64::MAX << 12),
    ] {
        let bytes = register_bytes(&[(at, &number(value))]);
        host.refuses(ErrorCode::Region, || peer.say(&bytes, &[fd]));
    }
    let beyond = register_bytes(&[(112, &number(2 * RAM + PAGE_SIZE))]);
    host.refuses(ErrorCode::Region, || peer.say(&beyond, &[fd]));

    let readable = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let sealed = memory();
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let on_disk = File::open(std::env::current_exe().unwrap()).unwrap();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let pipe = File::from(pipe);
    for unfit in [readable, sealed, on_disk, pipe, memfd(RAM - PAGE_SIZE)] {
        let bytes = register_bytes(&[]);
        host.refuses(ErrorCode::Region, || peer.say(&bytes, &[unfit.as_fd()]));
    }
    peer.say(&register_bytes(&[]), &[fd]).unwrap();

    let mut client = host.client();
    let twice = Region::new(0, RAM, 0).unwrap();
    let error = client
        .register_vm(
            name(),
            ProtocolName::LATENCY,
            1,
            &[(twice, fd), (twice, fd)],
        )
        .unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
}

#[test]
fn overlapping_memory_is_refused() {
    let host = Host::start();
    let (peer, file) = (host.peer().greeted(), memory());
    let mut bytes = register_bytes(&[]);
    let region = bytes[104..128].to_vec();
    bytes.extend(region);
    let length = u8::try_from(bytes.len()).unwrap();
    bytes[8] = length;
    bytes[98] = 2;
    host.refuses(ErrorCode::Region, || peer.say(&bytes, &[file.as_fd(); 2]));
}

#[test]
fn pages_outside_of_memory_or_not_aligned_are_refused() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    for gpa in [
        1,
        RAM,
        HIGH - PAGE_SIZE,
        HIGH + RAM,
        u64::MAX,
        u64::MAX << 12,
    ] {
        host.refuses(ErrorCode::Gpa, || {
            vm.attach_vcpu(0, gpa, vcpu.pidfd().as_fd())
        });
    }
}

#[test]
fn memory_that_the_vmm_truncates_cannot_be_pinned_and_hurts_nobody() {
    let host = Host::start();
    let (mut vm, vcpu, file) = (host.client(), Vcpu::start(), memory());
    vm.register_vm(name(), ProtocolName::LATENCY, 1, &guest(file.as_fd()))
        .unwrap();
    file.set_len(0).unwrap();
    host.refuses(ErrorCode::Pin, || {
        vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd())
    });
}

#[test]
fn a_page_of_hugetlbfs_memory_is_found_inside_its_huge_page() {
    const HUGE: u64 = 2 << 20;
    let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = memfd_create(c"huge", flags)
        .map(File::from)
        .map_err(io::Error::from);
    let page = 3 * PAGE_SIZE;
    let mapped = file.and_then(|file| {
        file.set_len(2 * HUGE)?;
        let region = Region::new(0, HUGE, HUGE).unwrap();
        let region = crate::handoff::memory::GuestRegion::new(region, file.into());
        let region = region.unwrap_or_else(|(_, problem)| panic!("{problem}"));
        Ok(region.map_page(page).unwrap()?)
    });
    match mapped {
        Ok(mapped) => assert_eq!(mapped.address() % HUGE, page),
        Err(error) => eprintln!("not tested: no huge pages here ({error})"),
    }
}
