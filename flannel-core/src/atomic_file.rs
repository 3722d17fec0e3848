//! Files that are whole at any moment.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Puts a file in place: written beside it, synced, renamed, and the folder synced. A crash at any point
/// leaves the old file or the new one, never a part. Folders that are missing are made.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(folder)?;
    file.write_all(bytes)?;
    // Set on the open file, where the umask has no say.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}
