//! The QEMU that emulates the host VM: Debian's, without three faults of its emulation of x87 and SVM. All
//! are in QEMU 11.1.3, and the first in 10.2.2, too.
//!
//! Whatever emulated CPU loads x87 state without a pending exception (FXRSTOR, XRSTOR, FLDENV: an ordinary
//! task switch) calls [`cpu_clear_ignne`](IGNNE), which clears a bit in `hflags2` of CPU *0*, by a
//! read-modify-write that nothing orders with CPU 0's own. What CPU 0 sets there meanwhile is lost; besides
//! that bit there are the flags of SVM in it. Without GIF, CPU 0 is deaf to interrupts for good; without NPT,
//! it takes a guest's physical addresses for the host's. Found by hardware watchpoints on `hflags2`. How often
//! it strikes depends on the machine: on one, of 13 guests with two vCPUs that were booted one after another a
//! single one came up, and 8 of 8 without the function. The bit is for MS-DOS's way to learn of x87 exceptions,
//! and only ever set by a write to port 0xF0. No kernel here does that, so the function has nothing to do.
//!
//! [`helper_vmrun`](VMRUN) delivers an external interrupt that the hypervisor injects (`EVENTINJ`) at once, and
//! leaves its vector in the CPU's `exception_index`, where an exception waits to be delivered. If that CPU is
//! asked to leave its loop before the next `#VMEXIT`, the interrupt is delivered once more, as an exception and
//! so also to a guest that has interrupts off. The vector is of no use there, so the instruction that stores it
//! is taken out.
//!
//! [`do_interrupt_all`](DELIVER_ALL) notes what a guest is being delivered in `EVENTINJ`, and in the end clears
//! its bit "valid" only. The next `#VMEXIT` shows the rest as `EXITINTINFO`. KVM as of 6.18 seems to look at the
//! type in there alone (a patch for it does, `exit_int_info & SVM_EXITINTINFO_TYPE_MASK`), and to take an access to
//! emulated memory for one in the middle of an exception's delivery if nothing but such an exception has come
//! before it since the guest was entered: it gives up ("KVM internal error. Suberror: 3"). Guests that were
//! stopped so run where all of it is cleared.
//!
//! The last two show most where instructions are counted (`-icount`), as CPUs leave their loops all the time: no guest
//! came up with the second, and QEMU stopped guests that have a network card with the third.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::root::Root;

/// What is taken out of Debian's QEMU, as emulation is better without.
pub const MENDED: &str = "cpu_clear_ignne, vector of VMRUN, type of what was delivered";

const IGNNE: &str = "cpu_clear_ignne";
const VMRUN: &str = "helper_vmrun";

/// What [`VMRUN`] calls to deliver an interrupt, and what sets `exception_index` to none.
const DELIVER: &str = "do_interrupt_x86_hardirq";
const NO_EXCEPTION: &str = "cpu_loop_exit_noexc";

/// What delivers any interrupt or exception; the number clears the bit that says that an event is valid.
const DELIVER_ALL: &str = "do_interrupt_all";
const ALL_BUT_VALID: [u8; 4] = 0x7fff_ffff_u32.to_le_bytes();

/// Where calls by pointer may land (Intel's CET); a function may begin so.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const RET: u8 = 0xc3;
const CALL: u8 = 0xe8;
/// sub $imm32,%rdi
const SUB_RDI: &[u8] = &[0x48, 0x81, 0xef];
/// movl $imm32,disp32(%rdi)
const STORE_AT_RDI: &[u8] = &[0xc7, 0x87];
/// mov %r32,disp32(%r64), then what names both registers, then the displacement.
const STORE: u8 = 0x89;
const STORE_LENGTH: usize = 6;
/// nopw 0(%rax,%rax,1), as long as that.
const NOTHING: [u8; STORE_LENGTH] = [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00];
/// How far before the call the store may be.
const NEAR: usize = 64;

/// Puts the emulator into the root, beside the QEMU that came with it, which guests' VMMs are. What
/// cannot be mended, as its code is not as expected, is told, and stays.
pub fn prepare(root: &Root) -> Result<()> {
    let mut emulator =
        fs::read(root.path().join("usr/bin/qemu-system-x86_64")).context("the root's QEMU")?;
    for mend in [return_at_once, forget_vector, forget_event] {
        if let Err(error) = mend(&mut emulator) {
            eprintln!("lab: a fault of Debian's QEMU stays in the emulator: {error:#}");
        }
    }
    write_program(&root.emulator_file(), &emulator)
}

/// A function that a program exports.
struct Function {
    address: u64,
    /// Where in the file it is.
    code: Range<usize>,
}

impl Function {
    fn find(program: &[u8], name: &str) -> Result<Self> {
        let elf = object::File::parse(program)?;
        let symbol = elf
            .dynamic_symbols()
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(name))
            .with_context(|| format!("it exports no {name}"))?;
        let (address, size) = (symbol.address(), symbol.size());
        let at = elf
            .segments()
            .find_map(|segment| {
                let (offset, length) = segment.file_range();
                let within = address.checked_sub(segment.address())?;
                (within.checked_add(size)? <= length).then_some(offset + within)
            })
            .with_context(|| format!("{name} is in no segment"))?;
        let at = usize::try_from(at)?;
        let code = at..at.saturating_add(usize::try_from(size)?);
        ensure!(code.end <= program.len(), "{name} ends behind the file");
        Ok(Self { address, code })
    }

    /// Where in the file the only place in it is that looks so.
    fn only(&self, program: &[u8], bytes: &[u8]) -> Option<usize> {
        let mut places = self
            .code
            .clone()
            .filter(|at| program[*at..self.code.end].starts_with(bytes));
        places.next().filter(|_| places.next().is_none())
    }

    /// The 32 bits behind that.
    fn number_behind(&self, program: &[u8], bytes: &[u8]) -> Option<i32> {
        number_at(program, self.only(program, bytes)? + bytes.len())
    }
}

fn number_at(code: &[u8], at: usize) -> Option<i32> {
    let bytes = code.get(at..at.checked_add(4)?)?;
    Some(i32::from_le_bytes(bytes.try_into().ok()?))
}

fn return_at_once(program: &mut [u8]) -> Result<()> {
    let function = Function::find(program, IGNNE)?;
    let code = &mut program[function.code];
    let begin = if code.starts_with(ENDBR64) {
        ENDBR64.len()
    } else {
        0
    };
    ensure!(begin < code.len(), "{IGNNE} has no code");
    code[begin] = RET;
    Ok(())
}

/// Takes out the store of an injected interrupt's vector: the last one to `exception_index` before the
/// interrupt is delivered. Other functions tell where that is from what [`VMRUN`] is given, the CPU's registers.
fn forget_vector(program: &mut [u8]) -> Result<()> {
    let deliver = Function::find(program, DELIVER)?;
    let registers = deliver.number_behind(program, SUB_RDI);
    let registers = registers.with_context(|| format!("{DELIVER} is not as expected"))?;
    let index = Function::find(program, NO_EXCEPTION)?.number_behind(program, STORE_AT_RDI);
    let index = index.with_context(|| format!("{NO_EXCEPTION} is not as expected"))?;
    let displacement = index.wrapping_sub(registers);

    let vmrun = Function::find(program, VMRUN)?;
    let code = &mut program[vmrun.code];
    let calls = |at: &usize| {
        let next = at + 5;
        code[*at] == CALL
            && number_at(code, at + 1).is_some_and(|by| {
                let next = vmrun.address.wrapping_add(next as u64);
                next.wrapping_add_signed(by.into()) == deliver.address
            })
    };
    let call = (0..code.len()).find(calls);
    let call = call.with_context(|| format!("{VMRUN} never calls {DELIVER}"))?;
    let stores = |at: &usize| {
        // With a displacement of 32 bits, from a register that needs no further byte.
        code[*at] == STORE
            && code[at + 1] >> 6 == 0b10
            && code[at + 1] & 7 != 0b100
            && number_at(code, at + 2) == Some(displacement)
    };
    let store = (call.saturating_sub(NEAR)..call.saturating_sub(STORE_LENGTH - 1)).rfind(stores);
    let store = store.with_context(|| format!("{VMRUN} stores no vector"))?;
    code[store..store + STORE_LENGTH].copy_from_slice(&NOTHING);
    Ok(())
}

/// Has an event that was delivered cleared altogether.
fn forget_event(program: &mut [u8]) -> Result<()> {
    let valid = Function::find(program, DELIVER_ALL)?.only(program, &ALL_BUT_VALID);
    let valid = valid.with_context(|| format!("{DELIVER_ALL} is not as expected"))?;
    program[valid..valid + ALL_BUT_VALID.len()].fill(0);
    Ok(())
}

/// A machine that runs goes on with the program that it began with.
fn write_program(path: &Path, program: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, program).with_context(|| format!("cannot write {}", new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, path)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What is mended, on a small scale: ends with the sum of the faults, 1, 2, and 8.
    const PROGRAM: &str = r"
        #define NOINLINE __attribute__((noinline))
        struct cpu { char before[0x2c0]; int exception_index; char between[0x3dac]; char registers[64]; };
        struct cpu cpu;
        int faults, delivered;
        volatile unsigned event = 0x80000307;
        NOINLINE void cpu_clear_ignne(void) { faults |= 1; }
        NOINLINE void cpu_loop_exit(struct cpu *cpu) { delivered += !cpu; }
        NOINLINE void cpu_loop_exit_noexc(struct cpu *cpu) { cpu->exception_index = -1; cpu_loop_exit(cpu); }
        NOINLINE void do_interrupt_all(struct cpu *cpu, int vector)
        {
            delivered += cpu && vector == 7;
            event = event & 0x7fffffff;
        }
        NOINLINE void do_interrupt_x86_hardirq(char *registers, int vector)
        { do_interrupt_all((struct cpu *)(registers - 0x4070), vector); }
        NOINLINE void helper_vmrun(char *registers, int vector, int external)
        {
            ((struct cpu *)(registers - 0x4070))->exception_index = vector;
            if (external)
                do_interrupt_x86_hardirq(registers, vector);
        }
        int main(void)
        {
            cpu_loop_exit_noexc(&cpu);
            helper_vmrun(cpu.registers, 7, 1);
            cpu_clear_ignne();
            faults |= (cpu.exception_index < 0 ? 0 : 2) | (event ? 8 : 0);
            return delivered == 1 ? faults : 4;
        }";

    fn exit_code(folder: &Path, program: &[u8]) -> Option<i32> {
        let path = folder.join("program");
        write_program(&path, program).unwrap();
        Command::new(path).status().unwrap().code()
    }

    #[test]
    fn faults_are_mended_and_the_rest_of_the_program_stays() {
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
            assert_eq!(exit_code(folder.path(), &compiled), Some(11));

            let mut mended = compiled.clone();
            return_at_once(&mut mended).unwrap();
            assert_eq!(exit_code(folder.path(), &mended), Some(10), "{protection}");
            forget_event(&mut mended).unwrap();
            assert_eq!(exit_code(folder.path(), &mended), Some(2), "{protection}");
            forget_vector(&mut mended).unwrap();
            assert_eq!(exit_code(folder.path(), &mended), Some(0), "{protection}");
            let differ = compiled.iter().zip(&mended).filter(|(a, b)| a != b);
            assert_eq!(compiled.len(), mended.len());
            assert!(differ.count() <= 1 + STORE_LENGTH + ALL_BUT_VALID.len());
            let error = forget_vector(&mut mended).unwrap_err();
            assert_eq!(error.to_string(), "helper_vmrun stores no vector");
        }
        assert!(return_at_once(&mut b"no program".to_vec()).is_err());
    }

    #[test]
    fn what_another_program_does_stays() {
        let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let before = program.clone();
        let error = forget_vector(&mut program).unwrap_err();
        assert_eq!(error.to_string(), "it exports no do_interrupt_x86_hardirq");
        assert!(program == before);
    }
}
