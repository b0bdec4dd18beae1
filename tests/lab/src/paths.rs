//! Names that the machine's side of the lab and the side inside its VMs must agree on.

/// The virtio-serial port of the agent.
pub const PORT_NAME: &str = "pvsched.lab";

/// In the host VM: the kernels of the cache (`RELEASE/{vmlinux,config,modules}`).
pub const KERNELS: &str = "/lab/kernels";

/// In the host VM: what belongs to this run (the lab's binary, the guests' initrds).
pub const RUN: &str = "/lab/run";

/// In the host VM: sentences for the summary at the end of the run, one a line.
pub const NOTES: &str = "/run/pvsched-lab-notes";

/// In the host VM: the checkout, read-only.
pub const CHECKOUT: &str = "/src/scx_pvsched";

/// In the host VM: the seconds it took to boot, which tell how fast the machine is just now.
pub const BOOT_SECONDS: &str = "/run/pvsched-lab-boot-seconds";

/// The file name of a guest kernel's initrd in [`RUN`].
pub fn guest_initrd(release: &str) -> String {
    format!("guest-{release}.cpio")
}
