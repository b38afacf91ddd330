//! Replays the corpora.

use super::*;
use std::fs;
use std::path::Path;

#[test]
fn the_corpora_find_nothing_wrong() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS {
        let folder = corpora.join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            // The name of the file that fails stands in what the test prints.
            println!("{}", path.display());
            target(&bytes);
            count += 1;
        }
        assert!(count >= 8, "{}: {count} files", folder.display());
    }
}
