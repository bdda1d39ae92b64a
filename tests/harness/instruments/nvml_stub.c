// A libnvidia-ml with two cards and a slice (MIG) of the first one, for the tests of what reads pynvml: pynvml itself,
// its structures and its errors are the real ones. Handles are small numbers. Variables are set by the test.
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } use_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;

unsigned long long energy_mj = 1000000, step_mj = 50000;
unsigned power_mw = 500000, work_us = 0, pids[4], processes = 0;

static long is(void *handle) { return (long)handle; }
static void work(void) {  // processor time of one reading
    struct timespec now, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    end.tv_nsec += work_us * 1000L;
    end.tv_sec += end.tv_nsec / 1000000000L;
    end.tv_nsec %= 1000000000L;
    do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

int nvmlInitWithFlags(unsigned flags) { return OK; }
const char *nvmlErrorString(int code) { return "an error of the stub"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (!strcmp(uuid, "GPU-aaaa")) *handle = (void *)1;
    else if (!strcmp(uuid, "GPU-bbbb")) *handle = (void *)2;
    else if (!strcmp(uuid, "MIG-cccc")) *handle = (void *)3;
    else return NOT_FOUND;
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *slice, void **card) {
    if (is(slice) != 3) return INVALID;
    *card = (void *)1;
    return OK;
}
int nvmlDeviceGetIndex(void *handle, unsigned *index) {
    if (is(handle) == 3) return NOT_SUPPORTED;
    *index = 4 + is(handle);
    return OK;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *value) { work(); *value = power_mw; return OK; }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *value) {
    value->total = 80ull << 30;
    value->used = (2ull + is(handle)) << 30;
    value->free = value->total - value->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *handle, use_t *value) {
    if (is(handle) == 3) return NOT_SUPPORTED;
    value->gpu = 90;
    value->memory = 10;
    return OK;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *value) {
    if (is(handle) == 3) return NOT_SUPPORTED;
    *value = 55;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *value) {
    if (is(handle) == 2) return NOT_SUPPORTED;
    *value = energy_mj += step_mj;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *found) {
    unsigned room = *count;
    *count = processes;
    if (!processes) return OK;
    if (!found || room < processes) return TOO_SMALL;
    for (unsigned i = 0; i < processes; i++) found[i] = (process_t){.pid = pids[i], .used = 1 << 20, .gi = -1, .ci = -1};
    return OK;
}
