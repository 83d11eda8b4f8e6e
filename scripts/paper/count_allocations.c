/* Preloaded into a process, counts every byte that anything in it asks the C library for: the framework's tensors,
 * numpy's arrays and, with PYTHONMALLOC=malloc, every Python object. What is freed is not taken off: the figure is that
 * of Julia's @time, which the paper's tables hold. A block that grows counts with its growth. glibc only.
 */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

static atomic_ullong total;

unsigned long long bytes_allocated_so_far(void) { return total; }

static void count(size_t bytes) { atomic_fetch_add_explicit(&total, bytes, memory_order_relaxed); }

void *malloc(size_t bytes)
{
    count(bytes);
    return __libc_malloc(bytes);
}

void *calloc(size_t number, size_t bytes)
{
    count(number * bytes);
    return __libc_calloc(number, bytes);
}

void *realloc(void *block, size_t bytes)
{
    size_t before = block ? malloc_usable_size(block) : 0;
    if (bytes > before)
        count(bytes - before);
    return __libc_realloc(block, bytes);
}

void *memalign(size_t alignment, size_t bytes)
{
    count(bytes);
    return __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **block, size_t alignment, size_t bytes)
{
    if (alignment % sizeof(void *) || alignment & (alignment - 1) || !alignment)
        return EINVAL;
    *block = memalign(alignment, bytes);
    return *block ? 0 : ENOMEM;
}
