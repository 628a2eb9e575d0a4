//! What a source file names: every path in it, resolved to the crate's root.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{
    Attribute, File, ItemExternCrate, ItemMod, ItemUse, Macro, Path, UseTree,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// A path that a source file names.
#[derive(Debug)]
pub(super) struct Mention {
    /// Its segments; the first is `crate` for a path inside the crate, else a name as written.
    pub(super) path: Vec<String>,
    /// Whether the first segment can only be a crate: it is no name that the file declares or imports.
    pub(super) is_external: bool,
    /// The line, from 1.
    pub(super) line: usize,
}

/// Returns all paths of two or more segments in `file`, which is the module `module`.
pub(super) fn mentions(file: &File, module: &[String]) -> Vec<Mention> {
    let mut finder = Finder { module: module.to_vec(), declared: Vec::new(), found: Vec::new() };
    finder.visit_file(file);
    let Finder { declared, mut found, .. } = finder;
    for mention in &mut found {
        let first = &mention.path[0];
        // A crate's name is written in lower case, a type's (`Vec::new`) is not.
        let is_lower_case = first.starts_with(|c: char| c.is_ascii_lowercase());
        mention.is_external &=
            is_lower_case && !declared.contains(first) && !PRIMITIVES.contains(&first.as_str());
    }
    found
}

/// Types whose names are written in lower case (`u32::from`).
const PRIMITIVES: &[&str] = &[
    "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128",
    "isize", "f32", "f64",
];

struct Finder {
    /// The module that is being visited.
    module: Vec<String>,
    /// Names of modules that the file declares, or that it imports from elsewhere.
    declared: Vec<String>,
    found: Vec<Mention>,
}

impl Finder {
    fn mention(&mut self, segments: Vec<String>, line: usize) {
        let path = self.resolve(segments);
        let is_external = path[0] != "crate";
        self.found.push(Mention { path, is_external, line });
    }

    /// Turns `self` and `super` into a path from the crate's root.
    fn resolve(&self, segments: Vec<String>) -> Vec<String> {
        if !matches!(segments[0].as_str(), "self" | "super") {
            return segments;
        }
        let mut module = self.module.clone();
        let ups = segments.iter().take_while(|segment| *segment == "self" || *segment == "super");
        let rest = ups.clone().count();
        for _ in ups.filter(|segment| *segment == "super") {
            module.pop();
        }
        let absolute = ["crate".to_owned()].into_iter().chain(module);
        absolute.chain(segments.into_iter().skip(rest)).collect()
    }

    fn use_tree(&mut self, tree: &UseTree, mut prefix: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.use_tree(&path.tree, prefix);
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item, prefix.clone())),
            UseTree::Name(name) => self.used(prefix, Some(&name.ident), &name.ident),
            UseTree::Rename(rename) => self.used(prefix, Some(&rename.ident), &rename.rename),
            UseTree::Glob(glob) => {
                if !prefix.is_empty() {
                    self.mention(prefix, glob.span().start().line);
                }
            }
        }
    }

    /// Notes the import of `prefix::last`, known as `local` from here on.
    fn used(&mut self, mut prefix: Vec<String>, last: Option<&Ident>, local: &Ident) {
        if !prefix.is_empty() {
            self.declared.push(local.to_string());
        }
        prefix.extend(last.map(ToString::to_string));
        self.mention(prefix, local.span().start().line);
    }

    /// Finds the paths in what a macro was given; a macro's input need not be Rust, so this looks at tokens alone.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<Ident> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 || path.is_empty() {
                        self.tokens_end(&mut path);
                    }
                    path.push(ident);
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.tokens_end(&mut path);
                    self.tokens(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.tokens_end(&mut path);
                    colons = 0;
                }
            }
        }
        self.tokens_end(&mut path);
    }

    fn tokens_end(&mut self, path: &mut Vec<Ident>) {
        let line = path.first().map_or(0, |ident| ident.span().start().line);
        if path.len() > 1 {
            self.mention(path.iter().map(ToString::to_string).collect(), line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.use_tree(&item.tree, Vec::new());
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        self.mention(vec![item.ident.to_string()], item.span().start().line);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.declared.push(item.ident.to_string());
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.segments.len() > 1 {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.mention(segments, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        self.tokens(invocation.tokens.clone());
        visit::visit_macro(self, invocation);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }
}
