//! What kind of KVM is here. That /dev/kvm opens proves little: it may stand for a hypervisor in software,
//! under which no stock kernel boots. Only a guest that has booted is proof, and none is booted here.

use std::fs::File;

use super::Check;
use super::host::Host;

/// Modules that run guests on the CPU's own means.
const HARDWARE: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_hv"];

/// What of KVM there is.
pub fn check(host: &Host) -> Check {
    let tcg = "virtual machines run under TCG (vm_accelerator_mode=tcg), and show no contract that asks for KVM";
    let device = host.path("dev/kvm");
    if !device.exists() {
        let next =
            format!("load kvm_intel or kvm_amd, or enable nesting in the hypervisor; else {tcg}");
        return Check::warn("kvm", "none: there is no /dev/kvm", next);
    }
    if let Err(error) = File::options().read(true).write(true).open(&device) {
        let found = format!("present, not usable by this user: {error}");
        return Check::warn(
            "kvm",
            found,
            format!("add the user to the group kvm; else {tcg}"),
        );
    }
    let module = |name: &&str| host.path("sys/module").join(name).exists();
    let hardware = HARDWARE.into_iter().find(module);
    let flags = host.field("proc/cpuinfo", "flags").unwrap_or_default();
    let extension = ["vmx", "svm"]
        .into_iter()
        .find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted));
    match (hardware, extension) {
        (Some(module), Some(extension)) => Check::ok(
            "kvm",
            format!("usable: opens, {module} on a CPU with {extension}; no guest was booted"),
        ),
        (module, extension) => {
            let mut lacks = Vec::new();
            if module.is_none() {
                lacks.push("no module for the CPU's own means is loaded");
            }
            if extension.is_none() {
                lacks.push("the CPU shows neither vmx nor svm");
            }
            let found = format!(
                "present: /dev/kvm opens, but {}; no guest was booted",
                lacks.join(" and ")
            );
            Check::warn("kvm", found, tcg)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::host::tests::machine;
    use super::*;

    #[test]
    fn the_kind_is_told_by_the_module_and_the_cpu() {
        let cpu = ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx sse\n");
        let kvm = ("dev/kvm", "");
        let intel = ("sys/module/kvm_intel/refcnt", "0");
        let (_dir, host) = machine(&[cpu, kvm, intel]);
        assert_eq!(check(&host).state, State::Ok);
        for files in [&[cpu, intel][..], &[cpu, kvm], &[kvm, intel], &[kvm]] {
            let (_dir, host) = machine(files);
            let check = check(&host);
            assert_eq!(check.state, State::Warn, "{files:?}");
            let kind = if files.contains(&kvm) {
                "present: "
            } else {
                "none: "
            };
            assert!(check.found.starts_with(kind), "{}", check.found);
        }
    }
}
