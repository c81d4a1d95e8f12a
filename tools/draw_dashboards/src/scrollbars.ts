// react-custom-scrollbars-2 with its default export where @grafana/ui looks for it: esbuild follows Node's rules
// for a CommonJS package that an .mjs file imports, and @grafana/ui those of its own bundler.

import wrapped from '../node_modules/react-custom-scrollbars-2/lib/index.js';

export default (wrapped as any).default ?? wrapped;
