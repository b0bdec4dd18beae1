//! Taking the kernel proper out of a vmlinuz. QEMU starts it directly (PVH), which spares emulated
//! processors the unpacking.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

use crate::root::Root;

/// Fields of the boot protocol's setup header (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The uncompressed ELF kernel in a bzImage.
pub fn extract(image: &[u8], root: &Root) -> Result<Vec<u8>> {
    let payload = payload(image).context("this is no bzImage of boot protocol 2.08 or newer")?;
    let program = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => bail!("the kernel is packed in a way that vmlinux.rs does not know"),
    };
    let words = root.foreign(program);
    let mut unpack = Command::new(&words[0])
        .args(&words[1..])
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut input = unpack.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A failure shows in the program's status.
            let _ = input.write_all(payload);
        });
        unpack.wait_with_output()
    })?;
    ensure!(
        output.status.success() && output.stdout.starts_with(b"\x7fELF"),
        "{program} cannot unpack the kernel"
    );
    Ok(output.stdout)
}

/// The packed kernel, without the size that ends it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = setup.checked_add(word(PAYLOAD_OFFSET)?)?;
    let end = start.checked_add(word(PAYLOAD_LENGTH)?.checked_sub(4)?)?;
    image.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 1024 + 64];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = 12;
        image[1040..1048].copy_from_slice(b"packed!!");
        image
    }

    #[test]
    fn the_payload_is_found_without_its_size() {
        assert_eq!(payload(&image()), Some(&b"packed!!"[..]));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(payload(b"MZ"), None);
        let mut short = image();
        short[PAYLOAD_LENGTH + 1] = 1;
        assert_eq!(payload(&short), None);
        let mut other = image();
        other[MAGIC] = 0;
        assert_eq!(payload(&other), None);
    }
}
