// The names kernels are written in: PTX instructions on a GPU, their meaning on a CPU.
#pragma once

#ifdef EDGEKD_EMULATOR
#include "emulator.h"
#else
#include "device.h"
#endif
