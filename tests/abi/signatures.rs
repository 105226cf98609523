//! Rust declarations written as C.

use std::error::Error;

use syn::{FnArg, ForeignItem, GenericArgument, Item, PathArguments, ReturnType, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Every type alias and every foreign function of a Rust source file, as C declarations in the same order.
///
/// # Errors
/// If the file cannot be parsed, or has something in a declaration that this cannot say in C: to skip it would be to
/// leave it unproved.
pub fn as_c(source: &str) -> Result<String> {
    let mut c = String::new();
    for item in syn::parse_file(source)?.items {
        match item {
            Item::Type(alias) => {
                c += &format!("typedef {};\n", declare(&alias.ty, &alias.ident.to_string())?)
            }
            Item::ForeignMod(block) => {
                for item in block.items {
                    let ForeignItem::Fn(function) = item else {
                        return Err("only functions are expected".into());
                    };
                    let arguments = function.sig.inputs.iter().map(|argument| match argument {
                        FnArg::Typed(argument) => declare(&argument.ty, ""),
                        FnArg::Receiver(_) => Err("self".into()),
                    });
                    let name = format!("{}({})", function.sig.ident, list(arguments)?);
                    c += &format!("{};\n", returning(&function.sig.output, &name)?);
                }
            }
            _ => {}
        }
    }
    Ok(c)
}

/// `name` declared as a `ty`; an empty name gives the type alone.
fn declare(ty: &Type, name: &str) -> Result<String> {
    match ty {
        Type::Ptr(pointer) => {
            // `const` behind what it qualifies, so that pointers to pointers need no second rule.
            let constant = if pointer.const_token.is_some() { "const " } else { "" };
            Ok(format!("{} {constant}*{name}", declare(&pointer.elem, "")?))
        }
        Type::BareFn(function) => {
            let arguments = function.inputs.iter().map(|argument| declare(&argument.ty, ""));
            returning(&function.output, &format!("(*{name})({})", list(arguments)?))
        }
        Type::Path(path) => {
            let last = path.path.segments.last().ok_or("an empty path")?;
            let rust = last.ident.to_string();
            let c = match rust.as_str() {
                // A function pointer that may be null is what C calls a function pointer.
                "Option" => {
                    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
                        return Err("Option".into());
                    };
                    let Some(GenericArgument::Type(inner)) = arguments.args.first() else {
                        return Err("Option".into());
                    };
                    return declare(inner, name);
                }
                "c_char" => "char",
                "c_int" => "int",
                "c_long" => "long",
                "c_uchar" => "unsigned char",
                "c_void" => "void",
                "i64" => "int64_t",
                "isize" => "ssize_t",
                // The one struct without a typedef.
                "timeval" => "struct timeval",
                "u8" => "uint8_t",
                "u32" => "uint32_t",
                "u64" => "uint64_t",
                "usize" => "size_t",
                // Must be the header's: C will say if there is no such type.
                other => other,
            };
            Ok(format!("{c} {name}"))
        }
        _ => Err(format!("a declaration of {name} that has no C form here").into()),
    }
}

fn returning(output: &ReturnType, name: &str) -> Result<String> {
    match output {
        ReturnType::Default => Ok(format!("void {name}")),
        ReturnType::Type(_, ty) => declare(ty, name),
    }
}

fn list(arguments: impl Iterator<Item = Result<String>>) -> Result<String> {
    let arguments = arguments.collect::<Result<Vec<_>>>()?;
    Ok(if arguments.is_empty() { "void".to_owned() } else { arguments.join(", ") })
}
