// A library with a thread-local value that is too large for static TLS, for tls.c to open.
// library: -fPIC -shared -ftls-model=global-dynamic
static __thread int value = 123;
static __thread char large[1 << 16];

int *module_value(void);

int *module_value(void) {
    large[value & 0xffff] = 1;
    return &value;
}
