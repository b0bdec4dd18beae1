# shellcheck shell=sh
# Installing what a script needs; sourced by the scripts here, not run. Debian 12 or 13.

# need PACKAGE...: installs those that are missing.
need() {
	missing=
	for package; do
		if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$'; then
			missing="$missing $package"
		fi
	done
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" != 0 ]; then
		echo "${0##*/}: root is needed, to install$missing" >&2
		return 1
	fi
	echo "${0##*/}: installing$missing" >&2
	# Indexes of yesterday name packages that mirrors no longer have.
	apt-get update </dev/null >&2
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing </dev/null >&2
}

# indexes: fetches the package indexes, unless that has been done on this machine.
indexes() {
	[ -z "$(apt-get indextargets 'Created-By: Packages')" ] || return 0
	apt-get update </dev/null >&2
}

# newest_clang: the newest clang that is installed, else that can be; BPF needs 16.
newest_clang() {
	for version in $(seq 40 -1 16); do
		if command -v "clang-$version" >/dev/null; then
			echo "clang-$version"
			return
		fi
	done
	indexes
	for version in $(seq 40 -1 16); do
		if apt-cache show "clang-$version" >/dev/null 2>&1; then
			echo "clang-$version"
			return
		fi
	done
	echo "${0##*/}: this system has no package of clang 16 or newer" >&2
	return 1
}

# prerequisites: what the build and the lab use, and BPF_CLANG for the build; libelf and zlib are libbpf's,
# libseccomp is scx_rustland_core's.
prerequisites() {
	if ! command -v cargo >/dev/null; then
		echo "${0##*/}: cargo is missing; install Rust (https://rustup.rs)" >&2
		return 1
	fi
	BPF_CLANG=${BPF_CLANG:-$(newest_clang)} || return
	export BPF_CLANG
	case $BPF_CLANG in
	clang-*) need "$BPF_CLANG" "libclang-${BPF_CLANG#clang-}-dev" || return ;;
	esac
	need build-essential pkg-config libelf-dev zlib1g-dev libseccomp-dev
}
