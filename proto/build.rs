//! Compiles the protocol files with a pure-Rust compiler, so that no installed `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root.join("fluvial/v1"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, [root])?;
    // Who may call what is decided method by method, and a method that nobody decided about fails the build.
    let methods = descriptors.file.iter().flat_map(|file| {
        let of_service = |service: &'_ prost_types::ServiceDescriptorProto| {
            let path = format!("/{}.{}", file.package(), service.name());
            service.method.iter().map(|method| format!("{path}/{}", method.name())).collect::<Vec<_>>()
        };
        file.service.iter().flat_map(of_service).collect::<Vec<_>>()
    });
    let methods: Vec<String> = methods.collect();
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("methods.rs"), format!("&{methods:?}"))?;
    tonic_prost_build::configure().codec_path("crate::codec::SmallBuffers").bytes(".").compile_fds(descriptors)?;
    Ok(())
}
