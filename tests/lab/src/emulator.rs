//! The QEMU that emulates the host VM: Debian's, without one function that corrupts emulated CPU 0.
//!
//! Whatever emulated CPU loads x87 state without a pending exception (FXRSTOR, XRSTOR, FLDENV: an ordinary
//! task switch) calls `cpu_clear_ignne`, which clears a bit in `hflags2` of CPU *0*, by a read-modify-write
//! that nothing orders with CPU 0's own. What CPU 0 sets there meanwhile is lost; besides that bit there
//! are the flags of SVM in it. Without GIF, CPU 0 is deaf to interrupts for good; without NPT, it takes a
//! guest's physical addresses for the host's. Found in QEMU 10.2.2 by hardware watchpoints on `hflags2`;
//! 11.1.3 has the same function. How often it strikes depends on the machine: on one, of 13 guests with
//! two vCPUs that were booted one after another a single one came up, and 8 of 8 without the function.
//!
//! The bit is for MS-DOS's way to learn of x87 exceptions, and only ever set by a write to port 0xF0. No
//! kernel here does that, so the function has nothing to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::root::Root;

/// The function that emulation is better without.
pub const FUNCTION: &str = "cpu_clear_ignne";

/// Where calls by pointer may land (Intel's CET); a function may begin so.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const RET: u8 = 0xc3;

/// Puts the emulator into the root, beside the QEMU that came with it, which guests' VMMs are. Where that
/// has no such function, which only a newer QEMU can be the reason for, it is told, and the emulator is
/// the same.
pub fn prepare(root: &Root) -> Result<()> {
    let qemu =
        fs::read(root.path().join("usr/bin/qemu-system-x86_64")).context("the root's QEMU")?;
    let emulator = match returning_at_once(&qemu, FUNCTION) {
        Ok(mended) => mended,
        Err(error) => {
            eprintln!("lab: the emulator is Debian's QEMU unchanged: {error:#}");
            qemu
        }
    };
    write_program(&root.emulator_file(), &emulator)
}

/// The program with one of the functions it exports returning at once.
fn returning_at_once(program: &[u8], function: &str) -> Result<Vec<u8>> {
    let elf = object::File::parse(program)?;
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.is_definition() && symbol.name() == Ok(function))
        .with_context(|| format!("it exports no {function}"))?;
    let (address, size) = (symbol.address(), symbol.size());
    let at = elf
        .segments()
        .find_map(|segment| {
            let (offset, length) = segment.file_range();
            let within = address.checked_sub(segment.address())?;
            (within.checked_add(size)? <= length).then_some(offset + within)
        })
        .with_context(|| format!("{function} is in no segment"))?;
    let code = usize::try_from(at).ok().zip(usize::try_from(size).ok());
    let mut changed = program.to_vec();
    let code = code
        .and_then(|(at, size)| changed.get_mut(at..at.checked_add(size)?))
        .with_context(|| format!("{function} ends behind the file"))?;
    let begin = if code.starts_with(ENDBR64) {
        ENDBR64.len()
    } else {
        0
    };
    ensure!(begin < code.len(), "{function} has no code");
    code[begin] = RET;
    Ok(changed)
}

fn write_program(path: &Path, program: &[u8]) -> Result<()> {
    fs::write(path, program).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PROGRAM: &str = "int left = 3;\n\
         __attribute__((noinline)) void taken(void) { left = 0; }\n\
         int main(void) { taken(); return left; }\n";

    /// The exit code of a program that ends with 0 if its function does its work, else with 3.
    fn exit_code(folder: &Path, program: &[u8]) -> Option<i32> {
        let path = folder.join("program");
        write_program(&path, program).unwrap();
        Command::new(path).status().unwrap().code()
    }

    #[test]
    fn a_function_returns_at_once_and_the_rest_of_the_program_stays() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("program.c");
        fs::write(&source, PROGRAM).unwrap();
        for protection in ["-fcf-protection=none", "-fcf-protection=full"] {
            let compiled = folder.path().join("compiled");
            let cc = Command::new("cc")
                .args(["-O1", "-rdynamic", protection, "-o"])
                .args([&compiled, &source])
                .status();
            assert!(cc.unwrap().success());
            let compiled = fs::read(compiled).unwrap();
            assert_eq!(exit_code(folder.path(), &compiled), Some(0));

            let changed = returning_at_once(&compiled, "taken").unwrap();
            assert_eq!(exit_code(folder.path(), &changed), Some(3), "{protection}");
            let differ = compiled.iter().zip(&changed).filter(|(a, b)| a != b);
            assert_eq!((compiled.len(), differ.count()), (changed.len(), 1));

            let error = returning_at_once(&compiled, "given").unwrap_err();
            assert_eq!(error.to_string(), "it exports no given");
        }
        assert!(returning_at_once(b"no program", "taken").is_err());
    }
}
