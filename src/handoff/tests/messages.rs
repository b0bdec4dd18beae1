// SPDX-License-Identifier: GPL-2.0-only
//! What a peer may say, and when.

use super::*;

#[test]
fn a_version_that_the_scheduler_does_not_speak_is_refused_and_closes() {
    let host = Host::start();
    let peer = host.peer();
    host.refuses(ErrorCode::Version, || peer.ask(&hello(2, 9), &[]));
    assert!(peer.closed());
}

#[test]
fn malformed_messages_are_refused_and_close() {
    let host = Host::start();
    let sound = hello(1, 1).encode(1);
    let mut reserved = sound.clone();
    reserved[20] = 1;
    let long = [sound.clone(), vec![0]].concat();
    let huge = vec![7; 5000];
    for bytes in [
        &sound[..15],
        &sound[..23],
        &reserved,
        &long,
        &huge,
        b"hello",
    ] {
        let peer = host.peer();
        host.refuses(ErrorCode::Malformed, || peer.say(bytes, &[]));
        assert!(peer.closed());
    }
}

#[test]
fn unknown_requests_are_refused() {
    let host = Host::start();
    let peer = host.peer().greeted();
    for kind in [0, 5, 64, 67, 255] {
        let mut bytes = hello(1, 1).encode(1);
        bytes[4] = kind;
        host.refuses(ErrorCode::UnknownType, || peer.say(&bytes, &[]));
    }
}

#[test]
fn requests_out_of_order_are_refused() {
    let host = Host::start();
    let (ram, file) = (register_bytes(&[]), memory());
    let peer = host.peer();
    let detach = Request::VcpuDetach { apic_id: 0 };
    host.refuses(ErrorCode::Order, || peer.ask(&detach, &[]));
    host.refuses(ErrorCode::Order, || peer.say(&ram, &[file.as_fd()]));
    let peer = peer.greeted();
    host.refuses(ErrorCode::Order, || peer.ask(&hello(1, 1), &[]));
    host.refuses(ErrorCode::Order, || peer.ask(&detach, &[]));
    peer.say(&ram, &[file.as_fd()]).unwrap();
    host.refuses(ErrorCode::Order, || peer.say(&ram, &[file.as_fd()]));
}

#[test]
fn too_few_and_too_many_descriptors_are_refused() {
    let host = Host::start();
    let file = memory();
    let fd = file.as_fd();
    let peer = host.peer();
    host.refuses(ErrorCode::Fds, || peer.ask(&hello(1, 1), &[fd]));
    let peer = peer.greeted();
    let ram = register_bytes(&[]);
    for count in [0, 2, 32, 33, 200] {
        host.refuses(ErrorCode::Fds, || peer.say(&ram, &vec![fd; count]));
    }
    peer.say(&ram, &[fd]).unwrap();
    let attach = Request::VcpuAttach {
        apic_id: 0,
        page_gpa: 0,
    };
    host.refuses(ErrorCode::Fds, || peer.ask(&attach, &[]));
    host.refuses(ErrorCode::Fds, || peer.ask(&attach, &[fd, fd]));
}

#[test]
fn descriptors_of_refused_requests_are_closed() {
    let host = Host::start();
    let peer = host.peer().greeted();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    host.refuses(ErrorCode::Fds, || {
        peer.say(&register_bytes(&[]), &[writer.as_fd(); 33])
    });
    host.refuses(ErrorCode::Region, || {
        peer.say(&register_bytes(&[]), &[writer.as_fd()])
    });
    drop(writer);
    // Blocks until nobody holds the writing side.
    assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
}

#[test]
fn names_and_protocols_that_are_none_are_refused() {
    let host = Host::start();
    let (peer, file) = (host.peer().greeted(), memory());
    let fd = [file.as_fd()];
    for bad in [&[0; 5][..], b"a\0b", b"\xff\xfe", b"a\nb"] {
        let bytes = register_bytes(&[(16, bad)]);
        host.refuses(ErrorCode::Name, || peer.say(&bytes, &fd));
    }
    for bad in [&[0; 7][..], b"lat\0ncy", b"speed"] {
        let bytes = register_bytes(&[(80, bad)]);
        host.refuses(ErrorCode::Protocol, || peer.say(&bytes, &fd));
    }
    for version in [0u8, 2] {
        let bytes = register_bytes(&[(96, &[version])]);
        host.refuses(ErrorCode::Protocol, || peer.say(&bytes, &fd));
    }
}

#[test]
fn a_newer_client_gets_the_common_version_and_every_protocol_that_is_offered() {
    let host = Host::start();
    let file = memory();
    for protocol in Protocol::all() {
        let peer = host.peer();
        peer.ask(&hello(1, 9), &[]).unwrap();
        let name = protocol.name.padded();
        peer.say(&register_bytes(&[(80, name)]), &[file.as_fd()])
            .unwrap();
    }
}
