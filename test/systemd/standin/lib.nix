# A stand-in for the parts of nixpkgs' lib that the modules use, for machines without nixpkgs. Same
# names, same meaning, less of it; written from the manual. `scripts/test-systemd -l LIB` runs the same
# tests with the real one, which keeps this one honest.
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    split
    stringLength
    substring
    typeOf
    ;

  optional = c: x: if c then [ x ] else [ ];
  optionalString = c: x: if c then x else "";
  optionalAttrs = c: x: if c then x else { };
  unique = foldl' (acc: e: if elem e acc then acc else acc ++ [ e ]) [ ];
  nameValuePair = name: value: { inherit name value; };
  filterAttrs = p: s: listToAttrs (concatMap (n: optional (p n s.${n}) (nameValuePair n s.${n})) (attrNames s));
  mapAttrsToList = f: s: map (n: f n s.${n}) (attrNames s);
  imap0 = f: l: genList (i: f i (builtins.elemAt l i)) (length l);
  hasPrefix = p: s: substring 0 (stringLength p) s == p;
  hasSuffix =
    p: s:
    let
      n = stringLength s - stringLength p;
    in
    n >= 0 && substring n (-1) s == p;
  removePrefix = p: s: if hasPrefix p s then substring (stringLength p) (-1) s else s;
  removeSuffix = p: s: if hasSuffix p s then substring 0 (stringLength s - stringLength p) s else s;
  escapeRegex = builtins.replaceStrings [ "." "[" "*" "+" "?" "(" ")" "|" "^" "$" "\\" "{" ] [
    "\\."
    "\\["
    "\\*"
    "\\+"
    "\\?"
    "\\("
    "\\)"
    "\\|"
    "\\^"
    "\\$"
    "\\\\"
    "\\{"
  ];
  splitString = sep: s: filter isString (split (escapeRegex sep) s);
  showOption = concatStringsSep ".";
  isDerivation = v: v.type or null == "derivation";
  isType = t: v: isAttrs v && v._type or null == t;

  # --- definitions: conditions, priorities, order -----------------------------------------------------

  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };

  # A value with its conditions decided: a list of values.
  discharge =
    v:
    if isType "merge" v then
      concatMap discharge v.contents
    else if isType "if" v then
      (if v.condition then discharge v.content else [ ])
    else
      [ v ];

  # An attribute set's definitions, conditions moved to their attributes: which names are defined must
  # not depend on conditions, since those depend on values.
  pushDown =
    v:
    if isType "merge" v then
      concatMap pushDown v.contents
    else if isType "if" v then
      map (mapAttrs (_: mkIf v.condition)) (pushDown v.content)
    else
      [ v ];

  # Those of the highest priority, unwrapped.
  prevailing =
    values:
    let
      priority = v: if isType "override" v then v.priority else 100;
      best = foldl' (a: v: if priority v < a then priority v else a) 9999 values;
    in
    map (v: if isType "override" v then v.content else v) (filter (v: priority v == best) values);

  inOrder =
    values:
    let
      priority = v: if isType "order" v then v.priority else 1000;
    in
    map (v: if isType "order" v then v.content else v) (builtins.sort (a: b: priority a < priority b) values);

  resolve = values: inOrder (prevailing (concatMap discharge values));

  # --- types ----------------------------------------------------------------------------------------

  typeError = loc: type: throw "A definition for option `${showOption loc}' is not of type `${type.description}'.";

  mergeWith =
    type: loc: values:
    let
      r = resolve values;
    in
    if builtins.all type.check r then type.merge loc r else typeError loc type;

  mergeEqual =
    loc: values:
    if values == [ ] then
      throw "The option `${showOption loc}' was accessed but has no value defined."
    else if builtins.all (v: v == head values) values then
      head values
    else
      throw "The option `${showOption loc}' has conflicting definition values.";

  simple = description: check: {
    _type = "option-type";
    inherit description check;
    merge = mergeEqual;
  };

  types = rec {
    str = simple "string" isString;
    bool = simple "boolean" isBool;
    int = simple "signed integer" isInt;
    path = simple "absolute path" (v: hasPrefix "/" (toString v));
    package = simple "package" isDerivation;
    raw = simple "raw value" (_: true);
    ints.between = low: high: simple "integer between ${toString low} and ${toString high} (both inclusive)" (v: isInt v && v >= low && v <= high);
    lines = str // {
      merge = _: concatStringsSep "\n";
    };
    nullOr = t: {
      _type = "option-type";
      description = "null or ${t.description}";
      check = v: v == null || t.check v;
      merge = loc: values: if builtins.all (v: v == null) values then null else mergeWith t loc values;
    };
    listOf = t: {
      _type = "option-type";
      description = "list of ${t.description}";
      check = isList;
      merge = loc: values: map (v: mergeWith t (loc ++ [ "*" ]) [ v ]) (concatLists values);
    };
    attrsOf = t: {
      _type = "option-type";
      description = "attribute set of ${t.description}";
      check = isAttrs;
      merge =
        loc: values:
        let
          sets = concatMap discharge values;
        in
        listToAttrs (
          map (n: nameValuePair n (mergeWith t (loc ++ [ n ]) (map (s: s.${n}) (filter (s: s ? ${n}) sets)))) (
            unique (concatMap attrNames sets)
          )
        );
    };
    anything = {
      _type = "option-type";
      description = "anything";
      check = _: true;
      merge =
        loc: values:
        if builtins.all (v: isAttrs v && !isDerivation v) values then
          (attrsOf anything).merge loc values
        else
          mergeEqual loc values;
    };
    submodule = module: {
      _type = "option-type";
      description = "submodule";
      check = v: isAttrs v || isFunction v;
      merge =
        loc: values:
        (evalModules {
          modules = [ module ] ++ map (v: { config = v; }) values;
          prefix = loc;
        }).config;
    };
  };

  # --- options and modules --------------------------------------------------------------------------

  mkOption = attrs: attrs // { _type = "option"; };
  mkEnableOption =
    name:
    mkOption {
      default = false;
      example = true;
      description = "Whether to enable ${name}.";
      type = types.bool;
    };
  mkPackageOption =
    pkgs: name: _:
    mkOption {
      default = pkgs.${name};
      description = "The ${name} package to use.";
      type = types.package;
    };

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      collect =
        m:
        let
          loaded = if builtins.isPath m || isString m then import m else m;
          body = if isFunction loaded then loaded (specialArgs // { inherit config lib; }) else loaded;
          structured = body ? config || body ? options || body ? imports || body ? freeformType;
        in
        [
          {
            options = body.options or { };
            config = if structured then body.config or { } else body;
            freeformType = body.freeformType or null;
          }
        ]
        ++ concatMap collect (body.imports or [ ]);
      # As in nixpkgs, what is imported later is merged earlier.
      all = foldl' (acc: m: [ m ] ++ acc) [ ] (concatMap collect modules);

      declare =
        loc: sets:
        listToAttrs (
          map (
            n:
            let
              here = map (s: s.${n}) (filter (s: s ? ${n}) sets);
              at = loc ++ [ n ];
            in
            nameValuePair n (
              if isType "option" (head here) then
                (if length here == 1 then head here else throw "The option `${showOption at}' is already declared.")
              else
                declare at here
            )
          ) (unique (concatMap attrNames sets))
        );
      options = declare prefix (map (m: m.options) all);

      freeform = filter (t: t != null) (map (m: m.freeformType) all);
      definitions = map (m: m.config) all;

      value =
        loc: option: values:
        let
          given = concatMap discharge values;
          all = given ++ (if option ? default then [ (mkOverride 1500 option.default) ] else [ ]);
        in
        if all == [ ] then
          throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option."
        else
          mergeWith option.type loc all;

      # Only names that are declared, unless there is a free form: conditions may depend on values.
      tree =
        loc: declared: defs:
        let
          sets = concatMap pushDown defs;
          at = n: map (s: s.${n}) (filter (s: s ? ${n}) sets);
          extra = if freeform == [ ] then [ ] else filter (n: !(declared ? ${n})) (unique (concatMap attrNames sets));
        in
        mapAttrs (
          n: o: if isType "option" o then value (loc ++ [ n ]) o (at n) else tree (loc ++ [ n ]) o (at n)
        ) declared
        // listToAttrs (map (n: nameValuePair n (mergeWith (head freeform) (loc ++ [ n ]) (at n))) extra);
      config = tree prefix options definitions;

      unknown =
        loc: declared: defs:
        let
          sets = concatMap pushDown defs;
        in
        concatMap (
          n:
          let
            at = loc ++ [ n ];
          in
          if !(declared ? ${n}) then
            [ at ]
          else if isType "option" declared.${n} then
            [ ]
          else
            unknown at declared.${n} (map (s: s.${n}) (filter (s: s ? ${n}) sets))
        ) (unique (concatMap attrNames sets));
      bad = if freeform == [ ] then unknown prefix options definitions else [ ];
    in
    {
      inherit options;
      config = if bad == [ ] then config else throw "The option `${showOption (head bad)}' does not exist.";
    };

  lib = {
    inherit
      attrValues
      concatLists
      concatMap
      elem
      evalModules
      filter
      filterAttrs
      hasPrefix
      hasSuffix
      imap0
      isDerivation
      mapAttrs
      mapAttrsToList
      mkEnableOption
      mkIf
      mkMerge
      mkOption
      mkOrder
      mkOverride
      mkPackageOption
      optional
      optionalAttrs
      optionalString
      removePrefix
      removeSuffix
      showOption
      splitString
      types
      unique
      ;
    all = builtins.all;
    any = builtins.any;
    concatMapStrings = f: l: concatStringsSep "" (map f l);
    concatMapStringsSep = sep: f: l: concatStringsSep sep (map f l);
    concatStringsSep = concatStringsSep;
    escapeShellArg =
      s:
      if match "[[:alnum:],._+:@%/-]+" (toString s) != null then
        toString s
      else
        "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString s)}'";
    getExe = p: "${p}/bin/${p.meta.mainProgram}";
    getExe' = p: name: "${p}/bin/${name}";
    hasInfix = i: s: builtins.replaceStrings [ i ] [ "" ] s != s;
    intersectLists = a: filter (x: elem x a);
    last = l: builtins.elemAt l (length l - 1);
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    mkAfter = mkOrder 1500;
    mkBefore = mkOrder 500;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    optionals = c: l: if c then l else [ ];
    removeAttrs = removeAttrs;
    toInt = s: builtins.fromJSON s;
    versionAtLeast = a: b: builtins.compareVersions a b >= 0;
  };
in
lib
